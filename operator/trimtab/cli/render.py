"""`trimtab render`: the manifests that the operator would apply, for a review before they are."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_manifest
from trimtab.cli.plan import EXIT_INVALID, answer_manifest, exit_code, read_manifest
from trimtab.plan.types import PlanResult, ServingPlan
from trimtab.resources.identity import Manifest, Owner
from trimtab.resources.render import DEFAULT_SIDECAR_IMAGE, render

DEFAULT_NAMESPACE = "default"
DEFAULT_NAME = "llm"


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--replicas", type=click.IntRange(min=0), help="Replicas; default: those of the spec, else minReplicas.")
@click.option("--sidecar-image", default=DEFAULT_SIDECAR_IMAGE, show_default=True, help="Image of the sidecar.")
@click.option("--model-config", type=click.Path(path_type=Path), help="config.json, or folder of a model.")
@click.option("--catalogue", "additions", type=click.Path(path_type=Path), help="YAML with more models and GPUs.")
@click.option("--hub/--no-hub", default=False, show_default=True, help="Ask the Hub about models that are not listed.")
def command(
    file: Path,
    replicas: int | None,
    sidecar_image: str,
    model_config: Path | None,
    additions: Path | None,
    hub: bool,
) -> None:
    """Print the Kubernetes manifests of the LLMDeployment in FILE (`-`: standard input) as YAML.

    Exit code 0 with manifests, 2 when the spec is invalid, 3 when nothing fits; reasons go to standard error.
    """
    try:
        manifest = read_manifest(file)
        result = answer_manifest(manifest, model_config, additions, hub=hub)
        if result.plan is None:
            _explain(result)
            sys.exit(exit_code(result))
        manifests = _manifests(manifest, result.plan, replicas, sidecar_image)
    except InvalidSpecError as invalid:
        _explain(PlanResult(plan=None, errors=invalid.errors))
        sys.exit(EXIT_INVALID)
    click.echo(to_yaml(manifests, _header(result.plan)), nl=False)


def _manifests(
    manifest: Mapping[str, Any], plan: ServingPlan, replicas: int | None, sidecar_image: str
) -> tuple[Manifest, ...]:
    spec = parse_manifest(manifest)
    metadata = manifest.get("metadata") or {}
    owner = Owner(metadata.get("name") or DEFAULT_NAME, metadata.get("namespace") or DEFAULT_NAMESPACE)
    stated = spec.scaling.min_replicas if spec.replicas is None else spec.replicas
    return render(owner, spec, plan, stated if replicas is None else replicas, sidecar_image=sidecar_image)


def _header(plan: ServingPlan) -> str:
    lines = [f"Planned: {plan.option.label}", *plan.warnings]
    return "".join(f"# {line}\n" for text in lines for line in text.splitlines())


def _explain(result: PlanResult) -> None:
    from rich.console import Console

    from trimtab.cli.plan_table import print_plan

    print_plan(result, console=Console(stderr=True))


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no anchors: what people read in a review."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(manifests: Iterable[Manifest], header: str = "") -> str:
    """The manifests as a stream of YAML documents."""
    documents = (yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=120) for item in manifests)
    return header + "".join(f"---\n{document}" for document in documents)

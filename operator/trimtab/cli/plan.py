"""`trimtab plan`: choose a configuration, offline, with the same code as the operator."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from trimtab.api import API_VERSION, KIND
from trimtab.api.errors import FieldError, InvalidSpecError
from trimtab.api.resource import parse_manifest
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.catalog.catalogue import Catalogue, CatalogueError, load_catalogue
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.quantization import canonical
from trimtab.hub.folder import read_model
from trimtab.plan.planner import plan_spec
from trimtab.plan.types import PlanResult

EXIT_INVALID = 2
EXIT_NOTHING_FITS = 3
DEFAULT_PERCENTILE = "p95"
PERCENTILES = ("p50", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line adds to the file, field by field."""

    model: str | None
    engine: str | None
    gpu: tuple[str, ...]
    gpus: int | None
    quantization: str | None
    max_input_tokens: int | None
    max_total_tokens: int | None
    slo_ttft: str | None
    slo_tpot: str | None


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
@click.option("--model", help="Hub id; with --model-config any name.")
@click.option("--engine", help="tgi (default) or vllm.")
@click.option("--gpu", multiple=True, help="Allowed GPU, by catalogue name or node label; may be repeated.")
@click.option("--gpus", type=int, help="GPUs of a replica; default: chosen.")
@click.option("--quantization", help="Number format of the weights; default: chosen.")
@click.option("--max-input-tokens", type=int, help="Longest prompt.")
@click.option("--max-total-tokens", type=int, help="Longest prompt and answer together.")
@click.option("--slo-ttft", help="Time to first token, for instance 2s or p50=500ms,p99=3s (without a name: p95).")
@click.option("--slo-tpot", help="Time per output token, for instance 50ms (without a name: p95).")
@click.option(
    "--model-config",
    type=click.Path(path_type=Path),
    help="config.json, or folder of a model: its facts instead of the catalogue's.",
)
@click.option("--catalogue", "additions", type=click.Path(path_type=Path), help="YAML with more models and GPUs.")
@click.option("--hub/--no-hub", default=False, show_default=True, help="Ask the Hub about models that are not listed.")
@click.option("--all", "show_all", is_flag=True, help="Every configuration in the table.")
def command(
    file: Path | None,
    output: str,
    model_config: Path | None,
    additions: Path | None,
    hub: bool,
    show_all: bool,
    **flags: Any,
) -> None:
    """Choose number format, GPUs and engine settings for an LLMDeployment (FILE, or flags alone).

    Exit code 0 with a choice, 2 when the spec is invalid, 3 when nothing fits.
    """
    result = answer(file, Flags(**flags), model_config, additions, hub=hub)
    if output == "table":
        from trimtab.cli.plan_table import print_plan

        print_plan(result, show_all=show_all)
    elif output == "json":
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        click.echo(yaml.safe_dump(result.to_json(), sort_keys=False, width=120), nl=False)
    sys.exit(exit_code(result))


def exit_code(result: PlanResult) -> int:
    """0: a choice, 2: the spec is wrong, 3: nothing fits."""
    if result.plan is not None:
        return 0
    return EXIT_NOTHING_FITS if result.options else EXIT_INVALID


def answer(
    file: Path | None, flags: Flags, model_config: Path | None, additions: Path | None, *, hub: bool
) -> PlanResult:
    """The plan, with everything that is wrong with the input as its errors."""
    try:
        manifest = _manifest(file, flags, model_config)
    except InvalidSpecError as invalid:
        return PlanResult(plan=None, errors=invalid.errors)
    return answer_manifest(manifest, model_config, additions, hub=hub)


def answer_manifest(
    manifest: Mapping[str, Any], model_config: Path | None, additions: Path | None, *, hub: bool
) -> PlanResult:
    """The plan of a manifest that was read before."""
    try:
        catalogue = _catalogue(additions)
        spec = parse_manifest(manifest)
        model = _model(spec, catalogue, model_config, hub=hub)
    except (InvalidSpecError, CatalogueError) as invalid:
        return PlanResult(plan=None, errors=invalid.errors)
    return plan_spec(spec, catalogue, model=model)


def _catalogue(additions: Path | None) -> Catalogue:
    catalogue = load_catalogue()
    if additions is None:
        return catalogue
    loaded = _load_yaml(additions, "catalogue")
    if not isinstance(loaded, Mapping):
        raise CatalogueError((FieldError("catalogue", str(additions), "must be a mapping", "models and gpus"),))
    return catalogue.merged(loaded)


def _model(spec: LLMDeploymentSpec, catalogue: Catalogue, config: Path | None, *, hub: bool) -> ModelFacts | None:
    """Facts from the model's own files when they are at hand; None: the catalogue's."""
    name = spec.model.id or "model"
    if config is not None:
        return read_model(config, name)
    if not hub or spec.model.id is None or name.startswith("pvc://") or catalogue.model(name) is not None:
        return None
    from trimtab.hub.remote import HubAccess, HubError, fetch_model

    try:
        return fetch_model(name, spec.model.revision, HubAccess(token=os.environ.get("HF_TOKEN")))
    except HubError as unknown:
        if catalogue.find_model(name) is not None:
            return None
        raise InvalidSpecError((FieldError("spec.model.id", name, str(unknown)),)) from None


def _manifest(file: Path | None, flags: Flags, model_config: Path | None) -> dict[str, Any]:
    manifest = read_manifest(file) if file is not None else {"apiVersion": API_VERSION, "kind": KIND, "spec": {}}
    spec = manifest.get("spec")
    if spec is None:
        spec = {}
    if not isinstance(spec, dict):
        return manifest
    if file is None and flags.model is None and model_config is None:
        raise InvalidSpecError((FieldError("spec.model.id", None, "is required", "a FILE, --model or --model-config"),))
    _overlay(spec, flags, model_config)
    return {**manifest, "spec": spec}


def _overlay(spec: dict[str, Any], flags: Flags, model_config: Path | None) -> None:
    model = flags.model
    if model is None and model_config is not None and not (spec.get("model") or {}).get("id"):
        folder = model_config if model_config.is_dir() else model_config.parent
        model = folder.resolve().name or "model"
    if model is not None:
        spec["model"] = {key: value for key, value in (spec.get("model") or {}).items() if key != "size"} | {
            "id": model
        }
    _set(spec, ("engine", "type"), flags.engine)
    _set(spec, ("hardware", "gpuProducts"), list(flags.gpu) or None)
    _set(spec, ("hardware", "gpusPerReplica"), flags.gpus)
    _set(spec, ("quantization",), canonical(flags.quantization) if flags.quantization else None)
    _set(spec, ("context", "maxInputTokens"), flags.max_input_tokens)
    _set(spec, ("context", "maxTotalTokens"), flags.max_total_tokens)
    for metric, text in (("ttft", flags.slo_ttft), ("tpot", flags.slo_tpot)):
        if text is not None:
            _set(spec, ("slo", metric), _percentiles(f"spec.slo.{metric}", text))


def _set(spec: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    if value is None:
        return
    for key in path[:-1]:
        part = spec.get(key)
        if not isinstance(part, dict):
            part = {}
            spec[key] = part
        spec = part
    spec[path[-1]] = value


def _percentiles(field: str, text: str) -> dict[str, str]:
    """`2s`, `p50=1s,p99=3s`; a bare number is seconds."""
    targets: dict[str, str] = {}
    for part in text.split(","):
        name, _, duration = part.rpartition("=")
        name = name.strip() or DEFAULT_PERCENTILE
        if name not in PERCENTILES:
            raise InvalidSpecError((FieldError(field, name, "is not a percentile", ", ".join(PERCENTILES)),))
        duration = duration.strip()
        targets[name] = f"{duration}s" if duration.replace(".", "", 1).isdigit() else duration
    return targets


def read_manifest(file: Path) -> dict[str, Any]:
    """The LLMDeployment in a YAML file, which may hold other objects too; raises InvalidSpecError."""
    documents = _load_yaml(file, "FILE", several=True)
    found = [item for item in documents if isinstance(item, dict) and item.get("kind") == KIND]
    if len(found) == 1:
        return dict(found[0])
    if len(documents) == 1 and isinstance(documents[0], dict):
        return dict(documents[0])
    message = f"holds {len(found)} objects of kind {KIND}"
    raise InvalidSpecError((FieldError("FILE", str(file), message, f"exactly one {KIND}"),))


def _load_yaml(path: Path, field: str, *, several: bool = False) -> Any:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
        if several:
            return [document for document in yaml.safe_load_all(text) if document is not None]
        return yaml.safe_load(text)
    except OSError as missing:
        raise InvalidSpecError((FieldError(field, str(path), f"cannot be read: {missing.strerror}"),)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as broken:
        raise InvalidSpecError((FieldError(field, str(path), f"is no YAML: {broken}"),)) from None

"""Every example is valid, can be planned, and renders."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from trimtab.api.resource import parse_manifest
from trimtab.cli.main import main

FOLDER = Path(__file__).parents[3] / "examples"
EXAMPLES = [
    path for path in sorted(FOLDER.rglob("*.yaml")) if "kind: LLMDeployment" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in EXAMPLES])
def test_an_example_is_valid_and_renders(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    parse_manifest(manifest)
    result = CliRunner().invoke(main, ["render", str(path)])
    assert result.exit_code == 0, result.output
    kinds = {document["kind"] for document in yaml.safe_load_all(result.stdout) if document}
    assert {"Deployment", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget"} <= kinds


def test_there_are_examples_to_start_from() -> None:
    assert {"minimal", "by-size", "production", "advise"} <= {path.stem for path in EXAMPLES}

"""Every word that conditions and decisions may carry is explained in docs/conditions.md, and nothing else is."""

import ast
import re
from pathlib import Path

from trimtab.controller.reasons import ConditionType, Reason
from trimtab.engines.registry import ENGINES

ROOT = Path(__file__).parents[3]
WORDS = re.compile(r"`([A-Z][A-Za-z]+)`")


def _documented() -> set[str]:
    """First cells of all tables."""
    rows = [line for line in (ROOT / "docs" / "conditions.md").read_text().splitlines() if line.startswith("| `")]
    return {word for row in rows for word in WORDS.findall(row.split("|")[1])}


def _tuner_words() -> set[str]:
    """CamelCase literals of the tuner: its reasons."""
    found = set()
    for path in (ROOT / "operator" / "trimtab" / "tuning").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]*)+", text):
                found.add(text)
    return found


def test_every_reason_is_documented_and_every_documented_one_exists() -> None:
    engines = {failure.reason for engine in ENGINES.values() for failure in engine.failures}
    existing = {kind.value for kind in ConditionType} | {reason.value for reason in Reason} | engines | _tuner_words()
    assert _documented() == existing


def test_the_order_of_conditions_in_the_documentation_is_that_of_status() -> None:
    text = (ROOT / "docs" / "conditions.md").read_text()
    places = [text.index(f"| `{kind.value}` |") for kind in ConditionType]
    assert places == sorted(places)

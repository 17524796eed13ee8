"""What is known about the flags and variables of each engine's server, and whether a command line agrees with it.

The lists in data/<engine>_flags.json name the public source file that each entry was read from.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Literal

from trimtab.catalog.facts import Facts

FlagType = Literal[
    "string",
    "unsigned",
    "integer",
    "number",
    "port",
    "boolean",
    "switch",
    "negatable",
    "choice",
    "json",
    "unsigned-list",
    "string-list",
    "strings",
]
"""`boolean` takes the word true or false, `switch` takes no value, `negatable` is a switch with a `--no-` form,
`string-list` may be repeated, `strings` takes several values after one flag."""

_VALUELESS = frozenset({"switch", "negatable"})


class FlagFacts(Facts):
    """One flag, or one variable without a flag."""

    flag: str | None = None
    """Long name with its dashes; None: only a variable."""
    env: str | None = None
    """Variable that means the same; None: only a flag."""
    short: str | None = None
    """Short name with its dash."""
    type: FlagType
    """How its value is read."""
    choices: tuple[str, ...] = ()
    """All values, with type `choice`."""
    allowed: str = ""
    """What may stand there, where type and bounds do not say it."""
    minimum: float | None = None
    """Smallest value."""
    maximum: float | None = None
    """Largest value."""
    above: float | None = None
    """The value must be larger than this."""
    below: float | None = None
    """The value must be smaller than this."""
    default: Any = None
    """What the engine takes when it is left out; None: nothing, or computed."""
    secret: bool = False
    """The value must not be readable by others."""
    deprecated: bool = False
    """The engine keeps it for old command lines only."""
    notes: str = ""
    """What to know beyond the type."""
    source: str
    """Public file that it was read from."""

    @property
    def name(self) -> str:
        """The flag, else the variable."""
        return self.flag or self.env or ""

    @property
    def takes_value(self) -> bool:
        """Whether the flag is followed by a value."""
        return self.type not in _VALUELESS

    @property
    def repeatable(self) -> bool:
        """Whether the flag may stand several times."""
        return self.type == "string-list"

    def expected(self) -> str:
        """What may stand there, in words."""
        if self.choices:
            return ", ".join(self.choices)
        if self.allowed:
            return self.allowed
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
                ("below", self.below),
            )
            if bound is not None
        ]
        return " ".join([_TYPE_WORDS[self.type], *bounds])

    def problem(self, value: str) -> str | None:
        """Why the engine would not accept this value of the flag; None: it would."""
        if not value:
            return "an empty value is read as a value: leave it out"
        if self.type == "choice":
            return None if value in self.choices else "is not one of the values"
        return self._number_problem(value)

    def env_problem(self, value: str) -> str | None:
        """The same for the variable, where switches take a word."""
        if self.type in ("boolean", "switch", "negatable"):
            return None if value in ("true", "false") else "must be exactly true or false, in lower case"
        return self.problem(value)

    def _number_problem(self, value: str) -> str | None:
        if self.type in ("string", "string-list", "strings"):
            return None
        if self.type == "json":
            return _json_problem(value)
        if self.type == "boolean":
            return None if value in ("true", "false") else "must be exactly true or false, in lower case"
        parts = value.split(",") if self.type == "unsigned-list" else [value]
        for part in parts:
            number = _parse_number(part, self.type)
            if number is None:
                return f"is not {_TYPE_WORDS[self.type]}"
            if not self._in_bounds(number):
                return "is out of bounds"
        return None

    def _in_bounds(self, number: float) -> bool:
        low, high = (1, 65535) if self.type == "port" else (self.minimum, self.maximum)
        return (
            (low is None or number >= low)
            and (high is None or number <= high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


_TYPE_WORDS: dict[FlagType, str] = {
    "string": "text",
    "unsigned": "a whole number",
    "integer": "a whole number, also below zero",
    "number": "a number",
    "port": "a port (1 to 65535)",
    "boolean": "true or false",
    "switch": "no value",
    "negatable": "no value",
    "choice": "one of the values",
    "json": "a JSON document",
    "unsigned-list": "whole numbers with commas",
    "string-list": "text; repeat the flag for more",
    "strings": "one or more texts",
}


def _parse_number(text: str, kind: FlagType) -> float | None:
    if kind in ("unsigned", "port", "unsigned-list"):
        return int(text) if text.isascii() and text.isdigit() else None
    try:
        number = int(text) if kind == "integer" else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _json_problem(text: str) -> str | None:
    try:
        json.loads(text)
    except ValueError as error:
        return f"is no JSON: {error}"
    return None


@dataclass(frozen=True, slots=True)
class Argument:
    """One flag of a command line."""

    facts: FlagFacts
    value: str | None
    """None: the flag takes none."""
    text: str
    """As it was written."""
    more: tuple[str, ...] = ()
    """Further values of a flag of type `strings`."""

    @property
    def written(self) -> tuple[str, ...]:
        """The words of the command line, with a value after its flag or, where it begins with a dash, tied to it."""
        name = self.text.split(" ", 1)[0].partition("=")[0]
        if self.value is None:
            return (name,)
        return (f"{name}={self.value}",) if self.value.startswith("-") else (name, self.value, *self.more)


@dataclass(frozen=True, slots=True)
class BadArgument:
    """Part of a command line that the engine would not accept."""

    text: str
    message: str
    allowed: str


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line taken apart."""

    arguments: tuple[Argument, ...]
    bad: tuple[BadArgument, ...]


class FlagList(Facts):
    """All flags and variables of one engine at one version."""

    engine: str
    """Name of the engine."""
    version: str
    """The release that the list describes."""
    program: str
    """Name of the program."""
    source: str
    """Where the sources of that release are."""
    flags: tuple[FlagFacts, ...]
    """Flags, most with a variable that means the same."""
    environment: tuple[FlagFacts, ...] = ()
    """Variables without a flag."""

    @cached_property
    def by_flag(self) -> dict[str, FlagFacts]:
        """Long name → facts."""
        return {facts.flag: facts for facts in self.flags if facts.flag is not None}

    @cached_property
    def by_short(self) -> dict[str, FlagFacts]:
        """Short name → facts."""
        return {facts.short: facts for facts in self.flags if facts.short is not None}

    @cached_property
    def by_env(self) -> dict[str, FlagFacts]:
        """Variable → facts."""
        return {facts.env: facts for facts in (*self.flags, *self.environment) if facts.env is not None}

    def parse(self, args: Sequence[str]) -> CommandLine:
        """Take a command line apart (`--flag value`, `--flag=value`, `--switch`); never raises."""
        good: list[Argument] = []
        bad: list[BadArgument] = []
        rest = list(args)
        while rest:
            match self._next(rest):
                case Argument() as argument:
                    good.append(argument)
                case BadArgument() as wrong:
                    bad.append(wrong)
        return CommandLine(tuple(good), tuple(bad))

    def _next(self, rest: list[str]) -> Argument | BadArgument:
        text = rest.pop(0)
        name, equals, value = text.partition("=")
        facts = self.find(name)
        if facts is None:
            return self._unknown(text, name, rest)
        if not facts.takes_value:
            if equals:
                return BadArgument(text, f"{name} takes no value", name)
            return Argument(facts, None, text)
        if not equals:
            if not rest or self._is_flag(rest[0]):
                return BadArgument(text, f"{name} needs a value", facts.expected())
            value = rest.pop(0)
            text = f"{text} {value}"
        more: list[str] = []
        while facts.type == "strings" and not equals and rest and not self._is_flag(rest[0]):
            more.append(rest.pop(0))
        # Parts of a JSON document may be set one by one: --flag.part value.
        problem = None if facts.type == "json" and "." in name else facts.problem(value)
        if problem is not None:
            return BadArgument(text, problem, facts.expected())
        return Argument(facts, value, " ".join([text, *more]), tuple(more))

    def find(self, name: str) -> FlagFacts | None:
        """The flag that a long name means: its own, its `--no-` form, or a part of its JSON document."""
        facts = self.by_flag.get(name)
        if facts is None and name.startswith("--no-"):
            positive = self.by_flag.get(f"--{name.removeprefix('--no-')}")
            facts = positive if positive is not None and positive.type == "negatable" else None
        if facts is None and "." in name:
            whole = self.by_flag.get(name.partition(".")[0])
            facts = whole if whole is not None and whole.type == "json" else None
        return facts

    @staticmethod
    def _is_flag(text: str) -> bool:
        # As clap and argparse read it: a word with a dash is no value, unless it is tied to its flag by `=`.
        return len(text) > 1 and text[0] == "-" and not text[1].isdigit()

    def _unknown(self, text: str, name: str, rest: list[str]) -> BadArgument:
        known = self.by_short.get(name)
        if known is not None:
            if known.takes_value and rest and not rest[0].startswith("-"):
                rest.pop(0)
            return BadArgument(text, f"{name} is short for {known.flag}: write the long name", known.flag or "")
        if not name.startswith("-"):
            return BadArgument(text, "is no flag: write --flag=value or the flag and its value in turn", "a flag")
        if "=" not in text and rest and not rest[0].startswith("-"):
            rest.pop(0)
        return BadArgument(
            text, f"{self.program} {self.version} has no flag {name}", _nearest(name, tuple(self.by_flag))
        )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    words = set(name.strip("-").split("-"))
    scored = sorted(known, key=lambda flag: (-len(words & set(flag.strip("-").split("-"))), flag))
    close = [flag for flag in scored[:3] if words & set(flag.strip("-").split("-"))]
    return ", ".join(close) or "the flags of the engine's documentation"


@lru_cache(maxsize=8)
def load_flags(engine: str) -> FlagList:
    """The flag list of `tgi` or `vllm`; raises FileNotFoundError for any other engine."""
    text = resources.files("trimtab.catalog").joinpath("data", f"{engine}_flags.json").read_text(encoding="utf-8")
    return FlagList.model_validate_json(text)

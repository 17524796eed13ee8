"""From typed settings, extra arguments and variables to one view of what the engine will be told.

Shared by all engines: every flag may be written in three places, and the rules must see it wherever it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from trimtab.catalog.flags import Argument, FlagFacts, FlagList
from trimtab.engines.base import EngineSettings, Finding, Severity

EXTRA_ARGS = "spec.engine.extraArgs"
ENV = "spec.engine.env"

POSITIONAL = "MODEL"
"""Stands for the argument without a flag."""

# What a shell that expands `$@` unquoted would split or replace.
_UNSAFE = re.compile(r"[\s*?\[\]\\]")


@dataclass(frozen=True, slots=True)
class Typed:
    """A flag that a setting stands for."""

    flag: str
    value: str | int | float | bool | None
    """None or False: leave the flag out; True: a switch."""
    field: str
    """JSON path of the setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the engine will be told about one flag or variable."""

    value: str
    """Switches: `true`."""
    field: str
    """Where it was written."""

    @property
    def number(self) -> float:
        """The value of a numeric flag that was checked before."""
        return float(self.value)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One engine's flags, and who may set which."""

    flags: FlagList
    reserved: Mapping[str, str]
    """Flag → field of the spec that sets it (or the reason why none does): extra arguments may not."""
    forbidden: Mapping[str, str]
    """Flag or variable → why nobody may set it."""
    splits_arguments: bool = False
    """The entrypoint splits arguments at blanks: such values must go into variables."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Command line, environment and the merged view."""

    args: tuple[str, ...]
    env: Mapping[str, str]
    settings: Mapping[str, Setting]
    """By flag, for variables without a flag by name; only what passed its checks."""
    findings: tuple[Finding, ...]


def error(field: str, value: object, message: str, allowed: str = "") -> Finding:
    """A finding that forbids the launch."""
    return Finding(Severity.ERROR, field, value, message, allowed)


def warning(field: str, value: object, message: str, allowed: str = "") -> Finding:
    """A finding that should be known."""
    return Finding(Severity.WARNING, field, value, message, allowed)


def render_typed(typed: Typed) -> tuple[str, ...]:
    """The command-line form of a typed setting; empty when it is not set."""
    if typed.value is None or typed.value is False:
        return ()
    if typed.value is True:
        return (typed.flag,)
    if typed.flag == POSITIONAL:
        return (_text(typed.value),)
    return (typed.flag, _text(typed.value))


def _text(value: str | int | float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def resolve(vocabulary: Vocabulary, typed: Sequence[Typed], settings: EngineSettings) -> Resolved:
    """Merge typed settings with extra arguments and variables, and check each against the flag list."""
    merge = _Merge(vocabulary)
    for entry in typed:
        merge.add_typed(entry)
    merge.add_arguments(settings.extra_args)
    for name in sorted(settings.env):
        merge.add_variable(name, settings.env[name])
    for name in sorted(settings.secret_env):
        merge.add_secret(name)
    return Resolved(
        tuple(merge.args), MappingProxyType(merge.env), MappingProxyType(merge.settings), tuple(merge.findings)
    )


class _Merge:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.args: list[str] = []
        self.env: dict[str, str] = {}
        self.settings: dict[str, Setting] = {}
        self.findings: list[Finding] = []

    def add_typed(self, typed: Typed) -> None:
        rendered = render_typed(typed)
        if not rendered:
            return
        self.args.extend(rendered)
        facts = self.vocabulary.flags.find(typed.flag)
        value = "true" if typed.value is True else rendered[-1]
        if typed.flag.startswith("--no-"):
            value = "false"
        self.settings[typed.flag if facts is None else facts.name] = Setting(value, typed.field)

    def add_arguments(self, extra_args: Sequence[str]) -> None:
        line = self.vocabulary.flags.parse(extra_args)
        self.findings += [error(EXTRA_ARGS, bad.text, bad.message, bad.allowed) for bad in line.bad]
        for argument in line.arguments:
            problem = self._argument_problem(argument)
            if problem is not None:
                shown = argument.facts.name if argument.facts.secret else argument.text
                self.findings.append(error(EXTRA_ARGS, shown, *problem))
                continue
            self._take(argument)

    def _argument_problem(self, argument: Argument) -> tuple[str, str] | None:
        facts = argument.facts
        problem = self._ownership_problem(facts)
        if problem is not None:
            return problem
        if facts.secret:
            return (
                "would be readable in the pod, in the process list and in the log: check keys in a gateway before it,"
                f" or set {facts.env} in engine.env with a secretKeyRef",
                "no secrets in arguments",
            )
        if facts.name in self.settings and not facts.repeatable and not argument.text.startswith(f"{facts.name}."):
            before = self.settings[facts.name]
            return f"{facts.name} is already set by {before.field}: write it once", "each flag once"
        return None

    def _ownership_problem(self, facts: FlagFacts) -> tuple[str, str] | None:
        for name in (facts.flag or "", facts.env or ""):
            if name in self.vocabulary.forbidden:
                return self.vocabulary.forbidden[name], "leave it out"
        owner = self.vocabulary.reserved.get(facts.name)
        if owner is None:
            return None
        if owner.startswith("spec."):
            return f"{facts.name} has a field of its own: set {owner}", owner
        return owner, "leave it out"

    def _take(self, argument: Argument) -> None:
        facts = argument.facts
        value = "true" if argument.value is None else argument.value
        if argument.text.startswith("--no-"):
            value = "false"
        self.settings[facts.name] = Setting(value, EXTRA_ARGS)
        if argument.value is not None and self.vocabulary.splits_arguments and _UNSAFE.search(argument.value):
            self._as_variable(facts, argument.value)
        else:
            self.args += argument.written

    def _as_variable(self, facts: FlagFacts, value: str) -> None:
        if facts.env is None or facts.env in self.env:
            message = "the image's entrypoint splits arguments at blanks, and no second variable can carry this one"
            self.findings.append(error(EXTRA_ARGS, value, message, "a value without blanks"))
            return
        self.env[facts.env] = value

    def add_variable(self, name: str, value: str) -> None:
        facts = self.vocabulary.flags.by_env.get(name)
        finding = self._variable_problem(name, value, facts)
        if finding is not None:
            self.findings.append(finding)
            return
        self.env[name] = value
        if facts is not None:
            self.settings[facts.name] = Setting(value, ENV)

    def _variable_problem(self, name: str, value: str, facts: FlagFacts | None) -> Finding | None:
        if name in self.vocabulary.forbidden:
            return error(ENV, name, self.vocabulary.forbidden[name], "leave it out")
        if not value:
            return error(ENV, name, "an empty variable is read as a value: leave it out", "a value")
        if facts is None:
            return None
        owned = self._ownership_problem(facts)
        if owned is not None:
            return error(ENV, name, *owned)
        if facts.secret:
            return error(ENV, name, "is a secret and would be readable in the pod: use secretKeyRef", "secretKeyRef")
        if facts.name in self.settings:
            before = self.settings[facts.name]
            return error(ENV, name, f"{facts.name} is already set by {before.field}, which wins: write it once")
        problem = facts.env_problem(value)
        return None if problem is None else error(ENV, f"{name}={value}", problem, facts.expected())

    def add_secret(self, name: str) -> None:
        facts = self.vocabulary.flags.by_env.get(name)
        if name in self.vocabulary.forbidden:
            self.findings.append(error(ENV, name, self.vocabulary.forbidden[name], "leave it out"))
        elif facts is not None:
            owned = self._ownership_problem(facts)
            if owned is not None:
                self.findings.append(error(ENV, name, *owned))

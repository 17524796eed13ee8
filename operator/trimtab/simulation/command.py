"""The launcher's command line and environment: what it accepts, and how it refuses the rest.

launcher/src/main.rs of TGI 3.3.7 reads flags with clap: a flag wins over its variable, which wins over the default.
Unknown flags and values of the wrong type end with exit code 2, contradictions with exit code 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.catalog.flags import FlagFacts, FlagList, load_flags

USAGE, FAILURE = 2, 1
_U32_MAX, _U64_MAX, _PORT_MAX = 2**32 - 1, 2**64 - 1, 65535
_MORE = "\n\nFor more information, try '--help'."
_HEAD = "\n\nUsage: text-generation-launcher [OPTIONS]"


class StartupError(Exception):
    """The launcher ends: `code` is its exit code, the text what it writes to standard error."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Values by flag, defaults included; None: not set and no default."""

    values: Mapping[str, str | None]

    def text(self, flag: str) -> str | None:
        """Value as written."""
        return self.values[flag]

    def number(self, flag: str) -> int | None:
        """Value of an integer flag."""
        value = self.values[flag]
        return None if value is None else int(value)

    def given(self, flag: str, default: int) -> int:
        """Value of an integer flag that has a default."""
        value = self.number(flag)
        return default if value is None else value

    def real(self, flag: str, default: float) -> float:
        """Value of a float flag."""
        value = self.values[flag]
        return default if value is None else float(value)

    def on(self, flag: str) -> bool:
        """Whether a switch is set."""
        return self.values[flag] == "true"


def parse_command(args: Sequence[str], env: Mapping[str, str]) -> Arguments:
    """The launcher's arguments; raises StartupError with code 2 as clap would."""
    flags = load_flags("tgi")
    written = _written(flags, list(args))
    values: dict[str, str | None] = {}
    for facts in flags.flags:
        name = facts.flag or ""
        if name in written:
            values[name] = written[name]
        elif facts.env is not None and facts.env in env:
            values[name] = _checked(facts, env[facts.env])
        else:
            values[name] = _default(facts)
    if values["--ngrok"] == "true" and (values["--ngrok-authtoken"] is None or values["--ngrok-edge"] is None):
        missing = "\n".join(
            f"  {_shown(flags.by_flag[name])}" for name in ("--ngrok-authtoken", "--ngrok-edge") if values[name] is None
        )
        raise StartupError(
            USAGE, f"error: the following required arguments were not provided:\n{missing}{_HEAD}{_MORE}"
        )
    return Arguments(values)


def _default(facts: FlagFacts) -> str | None:
    if facts.type == "switch":
        return "false"
    if facts.default is None or isinstance(facts.default, list):
        return None
    return str(facts.default)


def _written(flags: FlagList, rest: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    while rest:
        text = rest.pop(0)
        name, equals, value = text.partition("=")
        facts = flags.by_flag.get(name) or flags.by_short.get(name)
        if facts is None or facts.flag is None:
            raise StartupError(USAGE, f"error: unexpected argument '{name}' found{_HEAD}{_MORE}")
        if facts.flag in found and not facts.repeatable:
            raise StartupError(
                USAGE, f"error: the argument '{_shown(facts)}' cannot be used multiple times{_HEAD}{_MORE}"
            )
        if not facts.takes_value:
            if equals:
                message = f"error: unexpected value '{value}' for '{facts.flag}' found; no more were expected"
                raise StartupError(USAGE, f"{message}{_HEAD}{_MORE}")
            found[facts.flag] = "true"
            continue
        if not equals:
            if not rest or (rest[0].startswith("-") and rest[0] != "-"):
                message = f"error: a value is required for '{_shown(facts)}' but none was supplied"
                raise StartupError(USAGE, f"{message}{_possible(facts)}{_MORE}")
            value = rest.pop(0)
        value = _checked(facts, value)
        found[facts.flag] = f"{found[facts.flag]},{value}" if facts.flag in found else value
    return found


def _shown(facts: FlagFacts) -> str:
    flag = facts.flag or ""
    if not facts.takes_value:
        return flag
    return f"{flag} <{flag.strip('-').replace('-', '_').upper()}>"


def _possible(facts: FlagFacts) -> str:
    values = facts.choices or (("true", "false") if facts.type in ("switch", "boolean") else ())
    return f"\n  [possible values: {', '.join(values)}]" if values else ""


def _checked(facts: FlagFacts, value: str) -> str:
    problem = _type_problem(facts, value)
    if problem is None:
        return value
    message = f"error: invalid value '{value}' for '{_shown(facts)}'"
    detail = f": {problem}" if problem else _possible(facts)
    raise StartupError(USAGE, f"{message}{detail}{_MORE}")


def _type_problem(facts: FlagFacts, value: str) -> str | None:
    """Why clap refuses the value: an empty text when the possible values say it; None: it does not."""
    match facts.type:
        case "choice":
            return None if value in facts.choices else ""
        case "switch" | "boolean":
            return None if value in ("true", "false") else ""
        case "unsigned" | "port":
            most = _PORT_MAX if facts.type == "port" or facts.maximum == _PORT_MAX else int(facts.maximum or _U64_MAX)
            return _integer_problem(value, most if most in (_PORT_MAX, _U32_MAX) else _U64_MAX)
        case "unsigned-list":
            problems = (_integer_problem(part, _U64_MAX) for part in value.split(","))
            return next((problem for problem in problems if problem is not None), None)
        case "number":
            return _float_problem(value)
        case _:
            return None


def _integer_problem(value: str, most: int) -> str | None:
    if not value:
        return "cannot parse integer from empty string"
    if not value.removeprefix("+").isascii() or not value.removeprefix("+").isdigit():
        return "invalid digit found in string"
    if int(value) > most:
        return f"{value} is not in 0..={most}" if most == _PORT_MAX else "number too large to fit in target type"
    return None


def _float_problem(value: str) -> str | None:
    try:
        float(value)
    except ValueError:
        return "cannot parse float from empty string" if not value else "invalid float literal"
    return None

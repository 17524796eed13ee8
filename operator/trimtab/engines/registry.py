"""The engines that Trimtab can run, by name."""

from types import MappingProxyType

from trimtab.engines.base import Engine
from trimtab.engines.tgi import TgiEngine
from trimtab.engines.vllm import VllmEngine

ENGINES: MappingProxyType[str, Engine] = MappingProxyType({"tgi": TgiEngine(), "vllm": VllmEngine()})


def get_engine(name: str) -> Engine:
    """The engine of that name; raises KeyError with the known names for any other."""
    try:
        return ENGINES[name]
    except KeyError:
        raise KeyError(f"no engine {name!r}: known are {', '.join(sorted(ENGINES))}") from None

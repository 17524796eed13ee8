"""`python -m trimtab.sidecar`: reads config.json and serves until SIGTERM."""

import asyncio
import gc
import logging
import os
import sys
from pathlib import Path

import uvloop

from trimtab.sidecar.app import App
from trimtab.sidecar.assembly import build_parts
from trimtab.sidecar.config import DEFAULT_DIRECTORY, DIRECTORY_VARIABLE, Config, ConfigError, parse_config
from trimtab.sidecar.gateway import Gateway


def _load(directory: Path) -> Config:
    try:
        return parse_config((directory / "config.json").read_bytes())
    except OSError as error:
        raise ConfigError(f"{directory / 'config.json'}: {error.strerror}") from error


async def _serve(config: Config, directory: Path) -> None:
    gateway = Gateway(config, build_parts(config), asyncio.get_running_loop())
    await App(config, directory, gateway).run()


def main() -> int:
    """Exit code: 0 after an orderly end, 2 for a wrong configuration, 1 when a port cannot be opened."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    directory = Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)
    try:
        config = _load(directory)
        # Requests leave no cycles behind, and a full collection would walk through all cached entries at one go.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        uvloop.run(_serve(config, directory))
    except ConfigError as error:
        logging.getLogger("trimtab.sidecar").error("%s", error)
        return 2
    except (OSError, ValueError) as error:
        logging.getLogger("trimtab.sidecar").error("cannot start: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m trimtab.controller`: the operator process. Exit codes: 0 stopped, 1 failed, 2 wrong settings."""

import asyncio
import logging
import os
import signal
import sys

from kubernetes.aio.config import ConfigException

from trimtab.controller.assembly import Operator, OperatorFailedError
from trimtab.controller.connection import load_configuration
from trimtab.controller.logs import configure_logging
from trimtab.controller.settings import Settings, SettingsError, load_settings

_log = logging.getLogger("trimtab.controller")


async def _serve(settings: Settings) -> int:
    try:
        configuration = await load_configuration(settings.kubeconfig, settings.kube_context)
    except ConfigException as missing:
        _log.error("no way to the API server: %s (set TRIMTAB_KUBECONFIG outside a cluster)", missing)
        return 2
    try:
        operator = Operator(settings, configuration)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, operator.stop)
        await operator.run()
    except OperatorFailedError as failed:
        _log.exception("the operator ends: %s", failed)
        return 1
    _log.info("stopped")
    return 0


def main() -> int:
    """Read the settings and run."""
    try:
        settings = load_settings(os.environ)
    except SettingsError as wrong:
        sys.stderr.write(f"{wrong}\n")
        return 2
    configure_logging(settings.log_format, settings.log_level)
    return asyncio.run(_serve(settings))


if __name__ == "__main__":
    sys.exit(main())

"""Logs for machines or people, each line with the object it is about."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from trimtab.controller.objects import Key

current_key: ContextVar[Key | None] = ContextVar("current_key", default=None)
"""The LLMDeployment that the running task works on."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, object and, for errors, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        key = current_key.get()
        if key is not None:
            entry["object"] = {"kind": "LLMDeployment", "namespace": key.namespace, "name": key.name}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        key = current_key.get()
        place = f" [{key}]" if key is not None else ""
        text = f"{datetime.now(UTC):%H:%M:%S} {record.levelname:7} {record.name}{place}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(log_format: str, level: str) -> None:
    """Send all logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Transport chatter: its warnings matter, its progress does not.
    for name in ("kopf", "urllib3", "asyncio", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Warns that it ignores signals in its thread, as it should.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)

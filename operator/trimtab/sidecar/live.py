"""Follows live.json in the mounted ConfigMap and hands each new valid content over, without a restart."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from trimtab.sidecar.config import ConfigError, Live, parse_live

log = logging.getLogger(__name__)

PERIOD = 0.2  # seconds between looks: a `stat` each, far below the second or two a ConfigMap needs to reach the node
MAX_BYTES = 64 * 1024


class LiveFile:
    """Reads `live.json` when it changed.

    The kubelet replaces the symbolic link `..data` of the mounted directory, which changes the inode that the
    path leads to. A content that cannot be used is logged once and counted; what held before stays. A missing
    file means defaults.
    """

    def __init__(
        self, directory: Path, apply: Callable[[Live], None], count: Callable[[str], None] = lambda result: None
    ) -> None:
        self._path = directory / "live.json"
        self._apply = apply
        self._count = count
        self._seen: tuple[int, int, int] | None = None
        self._last: Live | None = None

    def look(self) -> bool:
        """Read the file if it changed; whether new limits were applied."""
        try:
            stat = self._path.stat()
        except OSError:
            return False  # being replaced, or never written: what held before stays
        mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if mark == self._seen:
            return False
        self._seen = mark
        try:
            if stat.st_size > MAX_BYTES:
                raise ConfigError(f"live.json: longer than {MAX_BYTES} bytes")
            live = parse_live(self._path.read_bytes())
        except (ConfigError, OSError) as error:
            self._count("refused")
            log.warning("live limits not taken over: %s", error)
            return False
        self._count("applied")
        if live == self._last:
            return False
        self._last = live
        self._apply(live)
        log.info("live limits: %s", live.model_dump(by_alias=True, exclude_none=True))
        return True

    async def follow(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(PERIOD)

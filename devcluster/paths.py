"""Where the local cluster keeps what it builds (the cache) and what it runs on (the state)."""

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BRIDGE = "trimtab0"
BRIDGE_ADDRESS = "10.244.0.1"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"
NODE = "trimtab-node"
PORT_BASE = "TRIMTAB_PORT_BASE"
_DEFAULT_PORT_BASE = 23700
CONTEXT = "trimtab-devcluster"


class ClusterError(RuntimeError):
    """Something failed; `code` becomes the exit status (1: failed, 3: this machine lacks something)."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def cache_dir() -> Path:
    """Builds that outlive the cluster: `TRIMTAB_CACHE`, else the user's cache folder."""
    configured = os.environ.get("TRIMTAB_CACHE")
    if configured:
        return Path(configured).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "trimtab"


def state_dir() -> Path:
    """What the running cluster owns; removed by `down`. Short, because sockets lie below it (108 characters)."""
    return Path(os.environ.get("TRIMTAB_STATE") or "/tmp/trimtab-devcluster").resolve()


def cgroup_root(folder: Path) -> str:
    """Parent of all control groups of the cluster in `folder`, so that no other node's groups are touched."""
    return f"/trimtab-{content_key(str(folder))[:8]}"


def port(offset: int) -> int:
    """A port of the full cluster: `TRIMTAB_PORT_BASE` plus its offset. ClusterError (code 3) on a base that is none."""
    text = os.environ.get(PORT_BASE) or str(_DEFAULT_PORT_BASE)
    if not text.isdecimal() or not 1024 <= int(text) <= 65000:
        raise ClusterError(f"{PORT_BASE}={text} is not a port from 1024 to 65000: unset it or choose another", 3)
    return int(text) + offset


def content_key(*parts: str | bytes | Path) -> str:
    """A short hash of texts and of files' names and contents (folders: everything below them, by relative path)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                if "__pycache__" not in file.parts:
                    name = str(file.relative_to(part)) if part.is_dir() else file.name
                    digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
            digest.update(b"\0")
    return digest.hexdigest()[:16]

"""Running commands, and processes that outlive this one and are ended by their recorded identity only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devcluster.paths import ClusterError


def say(text: str) -> None:
    """Progress, on standard error so that standard output stays usable by scripts."""
    print(f"devcluster: {text}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_text: str | None = None,
    check: bool = True,
) -> str:
    """Run a command and return its standard output; ClusterError with its last words when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        input=input_text,
        text=True,
        capture_output=True,
        check=False,
    )
    if check and done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-2000:]
        raise ClusterError(f"`{' '.join(str(part) for part in command)}` ended with {done.returncode}: {words}")
    return done.stdout


def wait_for(what: str, ready: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    """Poll until `ready`; ClusterError with the tail of `log` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            tail = ""
            if log is not None and log.exists():
                tail = "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ClusterError(f"{what} was not ready within {seconds:.0f} s{tail}")
        time.sleep(0.2)


def _start_ticks(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot: with the pid it names a process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] == "Z" else fields[19]


class Processes:
    """Long-running processes of one cluster, recorded in `folder`/pids."""

    def __init__(self, folder: Path) -> None:
        self.pids = folder / "pids"
        self.logs = folder / "logs"

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start `command` in a session of its own unless it runs already; its output goes to logs/`name`.log."""
        if self.running(name):
            return
        self.pids.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        record = {"pid": process.pid, "started": _start_ticks(process.pid)}
        (self.pids / f"{name}.json").write_text(json.dumps(record))

    def log(self, name: str) -> Path:
        """Where the process writes."""
        return self.logs / f"{name}.log"

    def running(self, name: str) -> bool:
        """Whether the recorded process still lives (the same one, not another with its number)."""
        return self._pid(name) is not None

    def names(self) -> list[str]:
        """Recorded processes."""
        return sorted(file.stem for file in self.pids.glob("*.json")) if self.pids.exists() else []

    def stop(self, name: str, grace_seconds: float = 10.0) -> None:
        """End the recorded process, at first politely."""
        pid = self._pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            while self._pid(name) is not None:
                self._reap(pid)
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(0.2)
                    self._reap(pid)
                    break
                time.sleep(0.05)
            self._reap(pid)
        (self.pids / f"{name}.json").unlink(missing_ok=True)

    def _pid(self, name: str) -> int | None:
        try:
            record = json.loads((self.pids / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        pid = int(record["pid"])
        return pid if record["started"] is not None and _start_ticks(pid) == record["started"] else None

    @staticmethod
    def _reap(pid: int) -> None:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return


def find_tool(name: str) -> str:
    """Absolute path of a command, also where root's PATH lacks the system folders."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        raise ClusterError(f"the command {name} is missing: run `python3 -m devcluster up` as root to install it", 3)
    return found

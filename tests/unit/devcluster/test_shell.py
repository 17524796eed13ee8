"""Processes are ended by what they are, not by a number alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster.paths import ClusterError
from devcluster.shell import Processes, run, wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_a_process_is_started_once_and_ended(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("one", SLEEP)
    first = json.loads((tmp_path / "pids" / "one.json").read_text())
    processes.start("one", SLEEP)
    assert json.loads((tmp_path / "pids" / "one.json").read_text()) == first
    assert processes.names() == ["one"]
    processes.stop("one")
    assert not processes.running("one")
    with pytest.raises(ProcessLookupError):
        os.kill(first["pid"], 0)


def test_another_process_with_the_recorded_number_is_left_alone(tmp_path: Path) -> None:
    foreign = subprocess.Popen(SLEEP)
    try:
        (tmp_path / "pids").mkdir()
        record = {"pid": foreign.pid, "started": "1"}
        (tmp_path / "pids" / "one.json").write_text(json.dumps(record))
        processes = Processes(tmp_path)
        assert not processes.running("one")
        processes.stop("one")
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_a_process_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    processes = Processes(tmp_path)
    processes.start("deaf", [sys.executable, "-c", deaf])
    wait_for("the handler", lambda: "deaf" in processes.log("deaf").read_text(), 10)
    processes.stop("deaf", grace_seconds=0.1)
    assert not processes.running("deaf")


def test_a_failed_command_tells_its_last_words() -> None:
    with pytest.raises(ClusterError, match="ended with 7: last words"):
        run(["sh", "-c", "echo last words >&2; exit 7"])


def test_waiting_ends_with_the_tail_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("why it failed\n")
    with pytest.raises(ClusterError, match=r"it was not ready within 0 s\nwhy it failed"):
        wait_for("it", lambda: False, 0, log)

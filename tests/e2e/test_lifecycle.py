"""Up, up again, heal, refuse, down without a trace: of a second cluster with its own network and mounts.

The namespaces keep it apart from a cluster that may be up on this machine, and from whatever else changes there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
FORMER_RULE = "-A INPUT -i lo -m comment --comment was-here-before -j ACCEPT"

# What a cluster touches outside its own folder, one fact a line.
SNAPSHOT = r"""
ip -o link | awk '{print "link", $2}'
ip -o addr | awk '{print "address", $2, $4}'
ip route | sed 's/^/route /'
awk '{print "mount", $5}' /proc/self/mountinfo
(iptables-save; ip6tables-save) | grep -E '^-A|^:.* - ' | sed 's/\[.*//'
find /sys/fs/cgroup -type d -name 'trimtab-*' | sed 's/^/group /'
find /var/lib /var/log /run -not -path '/run/mount*' | sed 's/^/file /'  # umount keeps its own notes there
cd /proc/sys
grep -H . net/ipv4/ip_forward net/ipv4/conf/all/route_localnet net/netfilter/nf_conntrack_tcp_timeout_established \
  vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys | sed 's/^/setting /'
for p in /proc/[0-9]*; do
  [ "$(readlink $p/ns/net)" = "$(readlink /proc/self/ns/net)" ] && tr '\0' ' ' < $p/cmdline && echo
done | grep -E '[k]ube|[c]ontainerd|[p]ause|[c]oredns' | sed 's/^/process /'
true
"""


class Apart:
    """A network and mounts of its own, in which commands of the local cluster run."""

    def __init__(self) -> None:
        self.state = Path("/tmp") / f"trimtab-{uuid.uuid4().hex[:8]}"
        script = "ip link set lo up; exec sleep 1200"
        # Empty folders over the machine's, so that the records of another cluster are not seen.
        hide = "".join(f"mount -t tmpfs tmpfs {path}; " for path in ("/var/lib", "/var/log", "/run"))
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", hide + script]
        self.holder = subprocess.Popen(command)
        self.wait_for_loopback()

    def wait_for_loopback(self) -> None:
        """The namespaces are ready when the loopback in them is up."""
        deadline = time.monotonic() + 10
        outside = Path("/proc/self/ns/net").readlink()
        while (
            Path(f"/proc/{self.holder.pid}/ns/net").readlink() == outside
            or "LOOPBACK,UP" not in self.run("ip", "link", check=False).stdout
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        inside = ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", f"--wd={ROOT}", "--"]
        environment = {**os.environ, "TRIMTAB_STATE": str(self.state)}
        environment.pop("TRIMTAB_PORT_BASE", None)
        done = subprocess.run([*inside, *command], env=environment, text=True, capture_output=True, check=False)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def devcluster(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`python3 -m devcluster …` inside."""
        return self.run(sys.executable, "-m", "devcluster", *arguments, check=check)

    def snapshot(self) -> set[str]:
        """What the cluster could have left, one fact a line."""
        seen = self.run("bash", "-c", SNAPSHOT).stdout.splitlines()
        # Another cluster's control groups are not kept apart: only those of this one count.
        group = self.group
        return {line for line in seen if not line.startswith("group ") or group in line}

    @property
    def group(self) -> str:
        """Name of this cluster's control groups."""
        code = "from devcluster import cluster, paths; print(paths.cgroup_root(cluster.folder()))"
        return self.run(sys.executable, "-c", code).stdout.strip()

    def pids(self) -> dict[str, int]:
        """Recorded processes."""
        records = (self.state / "cluster" / "pids").glob("*.json")
        return {record.stem: int(json.loads(record.read_text())["pid"]) for record in records}

    def close(self) -> None:
        """End everything."""
        self.devcluster("down", check=False)
        self.holder.terminate()
        self.holder.wait(timeout=10)
        shutil.rmtree(self.state, ignore_errors=True)


@pytest.fixture
def apart() -> Iterator[Apart]:
    """Namespaces that are gone after the test."""
    place = Apart()
    yield place
    place.close()


def test_the_clusters_whole_life(apart: Apart) -> None:
    """One test, as each step needs the one before: up, up again, heal, down, down again."""
    apart.run("sh", "-c", f"(echo '*filter'; echo '{FORMER_RULE}'; echo COMMIT) | iptables-restore --noflush")
    before = apart.snapshot()
    assert FORMER_RULE in before

    apart.devcluster("up", "--gpu-product", "NVIDIA-A100-SXM4-80GB", "--gpus", "2")
    kubectl = _kubectl(apart)
    product = r"jsonpath={.items[0].metadata.labels.nvidia\.com/gpu\.product} {.items[0].status.allocatable}"
    first = kubectl("get", "nodes", "-o", product)
    assert first.startswith("NVIDIA-A100-SXM4-80GB")
    assert '"nvidia.com/gpu":"2"' in first
    kubectl("wait", "--for=condition=Available", "deployment/coredns", "-n", "kube-system", "--timeout=60s")

    started = apart.pids()
    apart.devcluster("up")
    assert apart.pids() == started, "a second `up` starts nothing"
    assert kubectl("get", "nodes", "-o", product) == first, "and leaves the GPUs as they were"

    for name in ("scheduler", "apiserver"):
        os.kill(started[name], signal.SIGKILL)
    apart.devcluster("up")
    healed = apart.pids()
    changed = {name for name in started if healed[name] != started[name]}
    assert changed == {"scheduler", "apiserver"}, "a third `up` starts what died and only that"
    assert "STOPPED" not in apart.devcluster("status").stdout

    # The worst case for `down`: what knows the containers died before it.
    os.kill(healed["containerd"], signal.SIGKILL)
    apart.devcluster("down")
    assert _differences(before, apart.snapshot()) == set()
    assert not apart.state.exists()
    assert "nothing to take down" in apart.devcluster("down").stderr


def test_a_port_that_another_process_holds_is_named(apart: Apart) -> None:
    script = "import socket, time; s = socket.create_server(('127.0.0.1', 23700)); time.sleep(600)"
    inside = ["nsenter", f"--target={apart.holder.pid}", "--net", "--", sys.executable, "-c", script]
    foreign = subprocess.Popen(inside)
    try:
        deadline = time.monotonic() + 10
        while ":23700" not in apart.run("sh", "-c", "cat /proc/net/tcp | grep -q :5C94 && echo :23700 || true").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = apart.devcluster("up", check=False)
        assert refused.returncode == 3
        assert "port 23700 (etcd) is taken by another process" in refused.stderr
        assert foreign.poll() is None, "it was not ended"
    finally:
        foreign.terminate()
        foreign.wait(timeout=10)


def test_a_machine_without_the_capabilities_is_refused(apart: Apart) -> None:
    before = apart.snapshot()
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]
    refused = apart.run(*without, sys.executable, "-m", "devcluster", "up", check=False)
    assert refused.returncode == 3
    assert "CAP_NET_ADMIN" in refused.stderr
    assert _differences(before, apart.snapshot()) == set()
    assert not apart.state.exists()


def _differences(before: set[str], after: set[str]) -> set[str]:
    # Mounts of another cluster, copied into these namespaces, vanish here too when that cluster deletes their places.
    return {line for line in before ^ after if line in after or not line.startswith("mount ")}


def _kubectl(apart: Apart) -> Callable[..., str]:
    program = apart.devcluster("tool", "kubectl").stdout.strip()
    kubeconfig = apart.devcluster("kubeconfig").stdout.strip()
    return lambda *arguments: apart.run(program, f"--kubeconfig={kubeconfig}", *arguments).stdout

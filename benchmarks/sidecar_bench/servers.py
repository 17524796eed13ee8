"""The contestants: each starts on a port of its own, pinned to a core, and ends with the benchmark."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

LITELLM = "litellm[proxy]==1.106.2"
TICK = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).resolve().parent


class MissingToolError(RuntimeError):
    """A tool is missing and cannot be installed; `str()` says what to do."""


def cache_folder() -> Path:
    """Where what was downloaded stays between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "bench"


def debian_tool(command: str, package: str) -> str:
    """Path of a command; installs its Debian package (without starting a service) when we may."""
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise MissingToolError(f"{command} is missing: install the package {package}")
    # In run level 1 invoke-rc.d starts nothing.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", package]
    if subprocess.run(install, env=quiet, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update"], env=quiet, capture_output=True, check=True)
        subprocess.run(install, env=quiet, capture_output=True, check=True)
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")
    if not found:
        raise MissingToolError(f"{package} was installed but brought no {command}")
    return found


def peers_python() -> Path:
    """Python of a throw-away virtual environment with LiteLLM (which brings Starlette, uvicorn and httpx)."""
    folder = cache_folder() / ("venv-" + "".join(c if c.isalnum() else "-" for c in LITELLM))
    python = folder / "bin" / "python"
    if (folder / ".done").exists():
        return python
    print(f"installing {LITELLM} into {folder} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", LITELLM], check=True)
    (folder / ".done").touch()
    return python


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def _children(pid: int) -> list[int]:
    out = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            out += _children(int(child))
    return out


@dataclass
class Server:
    """A running process and how to reach it."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    admin: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def pids(self) -> list[int]:
        """The process and all that it started."""
        return _children(self.process.pid)

    def cpu_seconds(self) -> float:
        """User and system time of all its processes."""
        total = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def resident_bytes(self) -> int:
        """Resident memory of all its processes."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total

    def pin(self, core: int) -> None:
        """Run on one core only, threads included."""
        for pid in self.pids():
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), {core})

    def stop(self) -> None:
        """End it and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Stable:
    """Starts servers and ends all of them, whatever happens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.servers: list[Server] = []

    def __enter__(self) -> "Stable":
        return self

    def __exit__(self, *exc: object) -> None:
        for server in reversed(self.servers):
            server.stop()

    def _start(self, name: str, port: int, command: list[str], seconds: float = 20, **env: str) -> Server:
        log = (self._folder / f"{name}.log").open("wb")
        paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent / "operator")])
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": paths, **env}
        )
        server = Server(name, port, process)
        self.servers.append(server)
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return server
            time.sleep(0.1)
        raise RuntimeError(f"{name} did not start: see {log.name}")

    def upstream(self) -> Server:
        """The engine that answers at once."""
        port = free_port()
        return self._start("upstream", port, [sys.executable, "-m", "sidecar_bench.upstream", str(port)])

    def sidecar(self, upstream: Server, redis: Server | None = None) -> Server:
        """Ours, as it runs in a pod: exact cache, admission, metrics, tracing; with a Redis tier if one is given."""
        port, admin = free_port(), free_port()
        folder = self._folder / f"sidecar-{port}"
        folder.mkdir()
        config = {
            "upstream": f"http://127.0.0.1:{upstream.port}",
            "identity": {"model": "bench", "revision": "1", "quantization": "none", "engine": "tgi-3.3.7"},
            "listen": {"host": "127.0.0.1", "port": port, "metricsPort": admin},
            "admission": {"maxInFlight": 1200},
            "cache": {
                "exact": {"maxBytes": 512 * 2**20},
                "redis": {"url": f"redis://127.0.0.1:{redis.port}"} if redis else None,
                "secret": "bench",
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "live.json").write_text('{"maxInFlight": 1100}')
        command = [sys.executable, "-m", "trimtab.sidecar"]
        server = self._start("sidecar-redis" if redis else "sidecar", port, command, TRIMTAB_SIDECAR_CONFIG=str(folder))
        server.admin = admin
        return server

    def redis(self) -> Server | None:
        """A Redis without persistence; None where none is installed."""
        command = shutil.which("redis-server")
        if command is None:
            return None
        port = free_port()
        return self._start("redis", port, [command, "--port", str(port), "--save", "", "--appendonly", "no"])

    def nginx(self, kind: str, upstream: Server, body: bytes) -> Server:
        """`return`: a constant answer; `cache`: proxy_cache keyed on the body; `proxy`: no cache, no buffering."""
        port = free_port()
        folder = self._folder / f"nginx-{kind}"
        folder.mkdir()
        (folder / "body.json").write_bytes(body)
        text = body.decode().replace("\\", "\\\\").replace("'", "\\'")
        locations = {
            "return": f"default_type application/json; return 200 '{text}';",
            "cache": "proxy_pass http://up; proxy_cache c; proxy_cache_methods POST; proxy_cache_lock on;"
            'proxy_cache_key "$uri|$http_authorization|$request_body"; proxy_cache_valid 200 1h;',
            "proxy": "proxy_pass http://up; proxy_buffering off;",
        }
        temporary = " ".join(
            f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            ("user root;\n" if os.geteuid() == 0 else "")
            + f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
            "events { worker_connections 4096; }\n"
            f"http {{ access_log off; keepalive_requests 100000000; client_body_buffer_size 64k; {temporary}\n"
            f"proxy_cache_path {folder}/cache keys_zone=c:10m;\n"
            f"upstream up {{ server 127.0.0.1:{upstream.port}; keepalive 256; keepalive_requests 100000000; }}\n"
            'proxy_http_version 1.1; proxy_set_header Connection "";\n'
            f"server {{ listen 127.0.0.1:{port} backlog=2048; location / {{ {locations[kind]} }} }} }}\n"
        )
        command = [debian_tool("nginx", "nginx-light"), "-e", f"{folder}/error.log", "-c", str(folder / "nginx.conf")]
        return self._start(f"nginx-{kind}", port, command)

    def starlette(self, upstream: Server) -> Server:
        """Starlette + httpx on uvicorn with uvloop and httptools."""
        port = free_port()
        command = [str(peers_python()), "-m", "uvicorn", "sidecar_bench.starlette_proxy:app", "--port", str(port)]
        command += ["--no-access-log", "--log-level", "warning"]
        return self._start("starlette", port, command, BENCH_UPSTREAM=f"http://127.0.0.1:{upstream.port}")

    def litellm(self, upstream: Server) -> Server:
        """LiteLLM's proxy with its in-memory cache."""
        port = free_port()
        config = self._folder / "litellm.yaml"
        config.write_text(
            "model_list:\n"
            "  - model_name: bench\n"
            "    litellm_params:\n"
            "      model: openai/bench\n"
            f"      api_base: http://127.0.0.1:{upstream.port}/v1\n"
            "      api_key: none\n"
            "litellm_settings:\n"
            "  cache: true\n"
            "  cache_params: {type: local}\n"
            "  telemetry: false\n"
            "general_settings: {master_key: sk-bench}\n"
        )
        command = [str(peers_python().parent / "litellm"), "--config", str(config), "--port", str(port)]
        command += ["--host", "127.0.0.1"]
        server = self._start("litellm", port, command, seconds=180, LITELLM_TELEMETRY="False", LITELLM_LOG="ERROR")
        server.headers = {"Authorization": "Bearer sk-bench"}
        return server

"""`python -m trimtab.simulation.server [text-generation-launcher arguments]`."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from trimtab.api.errors import InvalidSpecError
from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.hf_config import model_from_config
from trimtab.catalog.models import ModelFacts
from trimtab.simulation.command import FAILURE, Arguments, StartupError, parse_command
from trimtab.simulation.launch import Launched, launch
from trimtab.simulation.server.app import SERVICE, make_app

DEFAULT_GPU = "A100-80GB"
POLL_SECONDS = 0.1
"""How often the launcher looks whether it was told to stop."""
_HELP = """Simulated text-generation-launcher 3.3.7

Usage: text-generation-launcher [OPTIONS]

Takes the options and variables of the real one; `python -m pydoc trimtab.simulation.server` lists its own variables."""


def log(message: str, target: str = "text_generation_launcher", level: str = "INFO") -> None:
    """A line as TGI writes it."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    print(f"{now}  {level} {target}: {message}", flush=True)  # noqa: T201 - the log is standard output


def find_model(arguments: Arguments, env: Mapping[str, str]) -> ModelFacts:
    """Facts of --model-id: a folder's config.json, else the catalogue; raises StartupError for unknown models."""
    model_id = arguments.text("--model-id") or ""
    stand_in = env.get("TRIMTAB_SIM_MODEL")
    config = Path(model_id) / "config.json"
    if stand_in is None and config.is_file():
        try:
            return model_from_config(model_id, json.loads(config.read_text("utf-8")))
        except (ValueError, InvalidSpecError) as wrong:
            raise StartupError(FAILURE, f"OSError: {config} cannot be used: {wrong}\nError: ShardCannotStart") from None
    found = load_catalogue().find_model(stand_in or model_id)
    if found is None:
        raise StartupError(
            FAILURE,
            f"RepositoryNotFoundError: 404 Client Error. Repository Not Found for url: "
            f"https://huggingface.co/api/models/{model_id}\nError: DownloadError",
        )
    return found.model


def find_gpu(env: Mapping[str, str]) -> GpuFacts:
    """The product that is pretended."""
    name = env.get("TRIMTAB_SIM_GPU", DEFAULT_GPU)
    gpu = load_catalogue().gpu(name)
    if gpu is None:
        raise StartupError(FAILURE, f"TRIMTAB_SIM_GPU={name} is not in the catalogue of GPUs")
    return gpu


def check_prometheus_port(arguments: Arguments) -> None:
    """The exporter's port is bound for an instant and then never served."""
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", arguments.given("--prometheus-port", 9000)))  # noqa: S104 - as the real one does
        except OSError as taken:
            if taken.errno == errno.EADDRINUSE:
                raise StartupError(
                    FAILURE, "thread 'main' panicked: failed to build prometheus recorder\nError: WebserverFailed"
                ) from None


def start(args: list[str], env: Mapping[str, str]) -> tuple[Launched, Arguments]:
    """Everything that can fail before the port opens; raises StartupError."""
    arguments = parse_command(args, env)
    shown = {name: value for name, value in arguments.values.items() if value is not None}
    log(f"Args {shown}")
    model, gpu = find_model(arguments, env), find_gpu(env)
    launched = launch(arguments, env, model, gpu)
    check_prometheus_port(arguments)
    attention = launched.attention
    log(f"Using attention {attention.backend} - Prefix caching {attention.prefix_caching}")
    if arguments.text("--max-batch-prefill-tokens") is None:
        log(f"Default `max_batch_prefill_tokens` to {launched.settings.max_batch_prefill_tokens}")
    basis = "scaled" if launched.times.estimate else "measured"
    log(f"Simulating {model.id} on {launched.shards}x{gpu.id} with {basis} step times: {launched.times.source}", "sim")
    return launched, arguments


async def serve(launched: Launched, arguments: Arguments, env: Mapping[str, str]) -> int:
    """Boot, serve until SIGTERM or SIGINT, drain; returns the exit code, 1 when a shard has died."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    boot = float(env.get("TRIMTAB_SIM_BOOT_SECONDS") or launched.boot_s)
    log("Starting shard", "text_generation_launcher")
    if await _stopped_within(stop, boot * 0.8):
        return 0
    log(f"Shard ready in {boot * 0.8:.1f}s", "shard-manager")
    log("Warming up model", "text_generation_router_v3")
    if await _stopped_within(stop, boot * 0.2):
        return 0
    settings = launched.settings
    log(f"Setting max batch total tokens to {settings.capacity_tokens}", "text_generation_router_v3")
    log(f"Maximum input tokens defaulted to {settings.max_input_tokens}", "text_generation_router_v3")
    log(f"Maximum total tokens defaulted to {settings.max_total_tokens}", "text_generation_router_v3")
    app = make_app(launched, arguments, env)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=float(arguments.given("--graceful-termination-timeout", 90)),
    )
    await runner.setup()
    host = arguments.text("--hostname") or "0.0.0.0"  # noqa: S104 - the launcher's default
    site = web.TCPSite(runner, _address(host), arguments.given("--port", 3000), backlog=1024, reuse_address=True)
    await site.start()
    log("Connected", "text_generation_router::server")
    crashed = app[SERVICE].driver.crashed
    waits = [asyncio.create_task(event.wait()) for event in (stop, crashed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.sleep(POLL_SECONDS)
    if crashed.is_set():
        log("Shard 0 crashed", level="ERROR")
        return FAILURE
    log("signal received, starting graceful shutdown", "text_generation_router::server")
    await runner.cleanup()
    return 0


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


def _address(host: str) -> str:
    """The container runtime sets HOSTNAME to the pod's name: not an address, so all are bound."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return host
    log(f"Invalid hostname, defaulting to 0.0.0.0: {host}", "text_generation_router::server", "WARN")
    return "0.0.0.0"  # noqa: S104


def main() -> int:
    """Run; returns the exit code."""
    args = sys.argv[1:]
    if {"-h", "--help", "-V", "--version"} & set(args):
        print(_HELP)  # noqa: T201
        return 0
    try:
        launched, arguments = start(args, os.environ)
    except StartupError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.code
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop

            code: int = uvloop.run(serve(launched, arguments, os.environ))
            return code
    return asyncio.run(serve(launched, arguments, os.environ))


if __name__ == "__main__":
    sys.exit(main())

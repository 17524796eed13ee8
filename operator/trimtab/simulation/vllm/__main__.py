"""`python -m trimtab.simulation.vllm [serve] [arguments of vllm serve]`."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from aiohttp import web

from trimtab.simulation.command import FAILURE, Arguments, StartupError
from trimtab.simulation.server.__main__ import find_gpu, find_model
from trimtab.simulation.vllm.app import make_app
from trimtab.simulation.vllm.launch import Launched, launch, parse_command


def log(message: str) -> None:
    """A line as vLLM writes it."""
    now = datetime.now(UTC).strftime("%m-%d %H:%M:%S")
    print(f"INFO {now} [simulated] {message}", flush=True)  # noqa: T201 - the log is standard output


def start(args: list[str], env: Mapping[str, str]) -> Launched:
    """Everything that can fail before the port opens; raises StartupError."""
    arguments = parse_command(args, env)
    if arguments.text("--uds") is not None:
        raise StartupError(FAILURE, "ValueError: the simulated server listens on a port only, not on --uds")
    # The finder of the simulated TGI knows the model by the launcher's name for it.
    model = find_model(Arguments({"--model-id": arguments.text("--model")}), env)
    launched = launch(arguments, env, model, find_gpu(env))
    settings, times = launched.settings, launched.times
    tokens = settings.num_gpu_blocks * settings.block_size
    if settings.chunked_prefill:
        log(f"Chunked prefill is enabled with max_num_batched_tokens={settings.max_num_batched_tokens}.")
    log(f"GPU KV cache size: {tokens:,} tokens")
    log(
        f"Maximum concurrency for {settings.max_model_len:,} tokens per request: {tokens / settings.max_model_len:.2f}x"
    )
    basis = "scaled" if times.estimate else "measured"
    log(f"{model.id} on {launched.shards}x{launched.gpu.id} with {basis} step times: {times.source}")
    return launched


async def serve(launched: Launched, env: Mapping[str, str]) -> int:
    """Boot and serve until SIGTERM or SIGINT, then break off what runs; returns the exit code."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), float(env.get("TRIMTAB_SIM_BOOT_SECONDS") or launched.boot_s))
        return 0
    app = make_app(launched, env)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    arguments = launched.arguments
    host, port = arguments.text("--host"), arguments.given("--port", 8000)
    await web.TCPSite(runner, host, port, backlog=2048, reuse_address=True).start()
    log(f"Starting vLLM API server 0 on http://{host or '0.0.0.0'}:{port}")  # noqa: S104 - vLLM's default
    log("Application startup complete.")
    await stop.wait()
    log("Shutting down")
    server = runner.server
    for connection in server.connections if server is not None else ():
        if connection.transport is not None:
            connection.transport.abort()
    await runner.cleanup()
    return 0


def main() -> int:
    """Run; returns the exit code."""
    try:
        launched = start(sys.argv[1:], os.environ)
    except StartupError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.code
    with contextlib.suppress(ImportError):
        import uvloop

        code: int = uvloop.run(serve(launched, os.environ))
        return code
    return asyncio.run(serve(launched, os.environ))


if __name__ == "__main__":
    sys.exit(main())

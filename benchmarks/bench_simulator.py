"""How fast the simulator is, and what a streamed token of the simulated server costs.

1. Simulated seconds per second for ten replicas under the conversation load of the Azure LLM inference trace 2023
   (TRIMTAB_TRACES names the folder of traces; without it the load is generated from the trace's published
   statistics, which the output says).
2. Processor time of the simulated server for each streamed token, at several numbers of concurrent streams.

`make bench-simulator` runs it; figures are printed as JSON. Exit code 1 below the required rate.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

from trimtab.catalog.steptime import step_time_model
from trimtab.replay.registry import Places, find_trace
from trimtab.simulation.fleet import Fleet, FleetSettings
from trimtab.simulation.policy import Static
from trimtab.simulation.replica import Admission
from trimtab.simulation.settings import Settings
from trimtab.simulation.workload import from_trace

MODEL, GPU = "meta-llama/Llama-3.1-8B-Instruct", "A100-80GB"
REQUIRED = 2000.0
TARGET_MICROSECONDS = 30.0
STREAMS = (8, 32, 64)
TOKENS = 300
ENGINE = Settings(
    max_input_tokens=15_000, max_total_tokens=16_384, max_batch_prefill_tokens=4096, capacity_tokens=400_000
)


def simulate(rounds: int) -> dict[str, object]:
    """Simulated seconds per second, the best of some rounds, for each balancer."""
    trace = find_trace("azure-2023-conv", places=Places(download=False))
    workload, times = from_trace(trace), step_time_model(MODEL, GPU)
    times.gemm_ms(1)
    rates = {}
    for balancer in ("random", "round-robin", "least-outstanding"):
        settings = FleetSettings(
            ENGINE, times, replicas=10, balancer=balancer, admission=Admission(max_in_flight=64, max_queue=256)
        )
        best = 0.0
        for _ in range(rounds):
            began = time.perf_counter()
            result = Fleet(settings, workload, Static()).run()
            best = max(best, trace.span_s / (time.perf_counter() - began))
        rates[balancer] = round(best)
    ttft, tpot = result.records.percentiles(result.records.ttft_s), result.records.percentiles(result.records.tpot_s)
    return {
        "load": f"{trace.source.origin}: {len(trace)} requests in {trace.span_s:.0f} s",
        "replicas": 10,
        "simulatedSecondsPerSecond": rates,
        "required": REQUIRED,
        "forwardPasses": result.passes,
        "ttftMsP50P95P99": [round(value * 1000, 1) for value in ttft],
        "tpotMsP50P95P99": [round(value * 1000, 1) for value in tpot],
    }


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _stream(session: aiohttp.ClientSession, url: str, number: int) -> int:
    body = {"inputs": f"stream {number} " + "the " * 300, "parameters": {"max_new_tokens": TOKENS}}
    events = 0
    async with session.post(f"{url}/generate_stream", json=body) as response:
        async for chunk in response.content.iter_any():
            events += chunk.count(b"data: ")
    return events


async def _load(url: str, process: int) -> list[dict[str, float]]:
    found = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        for _ in range(200):
            try:
                await session.get(f"{url}/health")
                break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
        for count in STREAMS:
            before, began = _processor_seconds(process), time.perf_counter()
            tokens = sum(await asyncio.gather(*(_stream(session, url, number) for number in range(count))))
            spent, wall = _processor_seconds(process) - before, time.perf_counter() - began
            found.append(
                {
                    "streams": count,
                    "tokensPerSecond": round(tokens / wall),
                    "microsecondsPerToken": round(spent / tokens * 1e6, 1),
                    "processorShare": round(spent / wall, 3),
                }
            )
    return found


def serve() -> dict[str, object]:
    """Processor time of a server process for each streamed token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--model-id", MODEL, "--hostname", "127.0.0.1", "--port", str(port), "--prometheus-port", "0"]
    env = {**os.environ, "TRIMTAB_SIM_GPU": GPU, "TRIMTAB_SIM_BOOT_SECONDS": "0.1"}
    command = [sys.executable, "-m", "trimtab.simulation.server", *flags]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            runs = asyncio.run(_load(f"http://127.0.0.1:{port}", process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
    return {"targetMicroseconds": TARGET_MICROSECONDS, "runs": runs}


def main() -> int:
    """Print both; the exit code judges the simulator only, as processor time depends on what else runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-server", action="store_true", help="skip the simulated server")
    options = parser.parse_args()
    figures = {"simulator": simulate(options.rounds)}
    if not options.no_server:
        figures["server"] = serve()
    print(json.dumps(figures, indent=2))
    rates = figures["simulator"]["simulatedSecondsPerSecond"]
    return 0 if isinstance(rates, dict) and min(rates.values()) >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())

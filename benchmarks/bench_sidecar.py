"""`make bench-sidecar`: the sidecar beside nginx, Starlette + httpx, and LiteLLM, in one run, in interleaved rounds.

Hits: one request of 1 KiB asked again and again, at 16 and 64 connections; server and client on a core each. Misses:
one client, every request new; all on one core (the way through the gateway alone), and again with the gateway on a core
of its own. Ratios are medians over rounds of the ratio within a round, since neighbours' load moves absolute numbers.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sidecar_bench.loads import Caller, Rate, chat_body, on_core, open_streams, wrk
from sidecar_bench.servers import MissingToolError, Server, Stable
from sidecar_bench.upstream import ANSWER

SERVER_CORE, CLIENT_CORE = 0, 1
CONNECTIONS = (16, 64)
BLOCK = 50
"""Misses asked of one contestant before it is the next one's turn."""


def quantile(values: list[float], q: float) -> float:
    """The q-quantile of the values by nearest rank."""
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


def warm(server: Server, body: bytes) -> None:
    """Ask once, so that the answer is in the cache."""
    caller = Caller(server)
    caller.json(body)
    caller.json(body)
    caller.close()


def measure_hits(servers: list[Server], folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Rates by server and number of connections, and ratios to the sidecar's."""
    body = chat_body("the question ")
    for server in servers:
        warm(server, body)
        server.pin(SERVER_CORE)
    runs: dict[int, dict[str, list[Rate]]] = {c: {s.name: [] for s in servers} for c in CONNECTIONS}
    for number in range(rounds):
        for connections in CONNECTIONS:
            # Turn the order round each time: drifts of the machine then hit everybody alike.
            for server in servers if number % 2 == 0 else servers[::-1]:
                runs[connections][server.name].append(wrk(server, folder, body, connections, seconds, CLIENT_CORE))
    return {
        str(connections): {
            name: {
                "requests_per_second": statistics.median(r.requests_per_second for r in rates),
                "p50_ms": statistics.median(r.p50 for r in rates) * 1e3,
                "p99_ms": statistics.median(r.p99 for r in rates) * 1e3,
                "cpu_us_per_request": statistics.median(r.cpu_us for r in rates),
                "errors": sum(r.errors for r in rates),
                "sidecar_ratio": statistics.median(
                    ours.requests_per_second / max(theirs.requests_per_second, 1e-9)
                    for ours, theirs in zip(by_name["sidecar"], rates, strict=True)
                ),
                "sidecar_cpu_ratio": statistics.median(
                    theirs.cpu_us / max(ours.cpu_us, 1e-9)
                    for ours, theirs in zip(by_name["sidecar"], rates, strict=True)
                ),
                "rounds": [asdict(r) for r in rates],
            }
            for name, rates in by_name.items()
        }
        for connections, by_name in runs.items()
    }


def measure_misses(servers: list[Server], samples: int, core: int, tag: str) -> dict[str, Any]:
    """Latency in µs of JSON answers and of first events by server, and what it adds to the first server's."""
    callers = {server.name: Caller(server) for server in servers}
    times: dict[str, dict[str, list[float]]] = {s.name: {"json": [], "sse": []} for s in servers}
    with on_core(core):
        for block in range(max(samples // BLOCK, 2)):
            for name, caller in callers.items():
                for kind, ask in (("json", caller.json), ("sse", caller.stream)):
                    for number in range(BLOCK):
                        text = f"{tag} {name} {kind} {block} {number} "
                        elapsed = ask(chat_body(text, stream=kind == "sse"))
                        if block and number >= BLOCK // 5:  # the first ones warm up what the others have displaced
                            times[name][kind].append(elapsed * 1e6)
    for caller in callers.values():
        caller.close()
    base = times[servers[0].name]
    return {
        name: {
            kind: {
                "p50_us": quantile(values, 0.5),
                "p99_us": quantile(values, 0.99),
                "added_p50_us": quantile(values, 0.5) - quantile(base[kind], 0.5),
                "added_p99_us": quantile(values, 0.99) - quantile(base[kind], 0.99),
            }
            for kind, values in kinds.items()
        }
        for name, kinds in times.items()
    }


def measure_chunks(server: Server, streams: int, events: int, tag: str) -> dict[str, float]:
    """Server CPU for one forwarded event, 4 ms apart on each of the streams."""
    before = server.cpu_seconds()
    result = open_streams(server, streams, events, 4, tag, CLIENT_CORE)
    used = server.cpu_seconds() - before
    return {
        "cpu_us_per_chunk": used / result.events * 1e6,
        "events": result.events,
        "complete": result.complete,
        "streams": streams,
    }


def measure_mixed(server: Server, folder: Path, seconds: float) -> dict[str, float]:
    """Hits on 4 connections while 64 live streams run."""
    events = int(seconds * 1000 / 32) + 40
    done: list[Any] = []
    load = threading.Thread(
        target=lambda: done.append(open_streams(server, 64, events, 32, "mixed", CLIENT_CORE)), daemon=True
    )
    body = chat_body("the question ")
    warm(server, body)
    load.start()
    threading.Event().wait(0.5)
    rate = wrk(server, folder, body, 4, seconds, CLIENT_CORE)
    load.join()
    return {
        "requests_per_second": rate.requests_per_second,
        "p50_ms": rate.p50 * 1e3,
        "p99_ms": rate.p99 * 1e3,
        "streams_complete": done[0].complete,
        "stream_events_per_second": done[0].events / done[0].seconds,
    }


def measure_thousand(server: Server) -> dict[str, float]:
    """A thousand open streams, one event each half second."""
    memory, cpu = server.resident_bytes(), server.cpu_seconds()
    peak = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], server.resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    result = open_streams(server, 1000, 12, 500, "thousand", CLIENT_CORE)
    stop.set()
    watcher.join()
    return {
        "complete": result.complete,
        "first_event_p50_ms": quantile(result.first_byte, 0.5) * 1e3,
        "first_event_p99_ms": quantile(result.first_byte, 0.99) * 1e3,
        "cpu_share_of_a_core": (server.cpu_seconds() - cpu) / result.seconds,
        "kib_per_stream": (peak[0] - memory) / 1000 / 1024,
    }


def measure_memory(server: Server, entries: int) -> dict[str, float]:
    """Resident bytes for each cached byte (answers of 1 KiB)."""
    caller = Caller(server)
    before = server.resident_bytes()
    for number in range(entries):
        caller.json(chat_body(f"memory {number} "))
    caller.close()
    grown = server.resident_bytes() - before
    return {"entries": entries, "mib_per_cached_mib": grown / (entries * len(ANSWER)), "before_mib": before / 2**20}


def report(results: dict[str, Any]) -> None:
    """Tables for people."""
    for connections, by_name in results["hits"].items():
        print(f"\nhits, {connections} connections      req/s    P50 ms   P99 ms   CPU µs  errors  sidecar is ×")
        for name, row in sorted(by_name.items(), key=lambda item: -item[1]["requests_per_second"]):
            print(
                f"  {name:<20} {row['requests_per_second']:>12.0f} {row['p50_ms']:>9.2f} {row['p99_ms']:>8.2f} "
                f"{row['cpu_us_per_request']:>8.1f} {row['errors']:>7} {row['sidecar_ratio']:>9.2f}"
            )
    for where, by_name in results["misses"].items():
        print(f"\nmisses, {where}         JSON P50   P99   added P50     SSE first P50   P99   added P50   (µs)")
        for name, row in by_name.items():
            j, s = row["json"], row["sse"]
            print(
                f"  {name:<20} {j['p50_us']:>10.0f} {j['p99_us']:>6.0f} {j['added_p50_us']:>10.0f}"
                f" {s['p50_us']:>16.0f} {s['p99_us']:>6.0f} {s['added_p50_us']:>10.0f}"
            )
    for title in ("chunks", "hits_beside_64_streams", "thousand_streams", "memory"):
        print(f"\n{title.replace('_', ' ')}: " + json.dumps(results[title], default=lambda v: round(v, 2)))
    print("\nratios: " + json.dumps(results["ratios"], indent=2))
    print("\nof CPU a request: " + json.dumps(results["cpu_ratios"], indent=2))


NAMES = {
    "hit_vs_nginx_return": "nginx-return",
    "hit_vs_nginx_proxy_cache": "nginx-cache",
    "hit_vs_starlette": "starlette",
    "hit_vs_litellm": "litellm",
}


def hit_ratios(hits: dict[str, Any], which: str) -> dict[str, float]:
    """The sidecar's advantage on hits: the worse one of 16 and 64 connections."""
    return {
        key: round(min(hits[str(c)][name][which] for c in CONNECTIONS), 3)
        for key, name in NAMES.items()
        if name in hits[str(CONNECTIONS[0])]
    }


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The named figures."""
    found = hit_ratios(results["hits"], "sidecar_ratio")
    misses = results["misses"]["one core"]
    found["miss_added_us_p50"] = round(misses["sidecar"]["json"]["added_p50_us"], 1)
    found["miss_first_event_added_us_p50"] = round(misses["sidecar"]["sse"]["added_p50_us"], 1)
    if "sidecar-redis" in misses:
        found["miss_added_us_p50_with_redis"] = round(misses["sidecar-redis"]["json"]["added_p50_us"], 1)
    found["sse_cpu_us_per_chunk"] = round(results["chunks"]["sidecar"]["cpu_us_per_chunk"], 1)
    found["hit_p99_ms_beside_64_streams"] = round(results["hits_beside_64_streams"]["p99_ms"], 2)
    return found


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start everybody, measure, and return all results."""
    with Stable(folder) as stable:
        upstream = stable.upstream()
        sidecar = stable.sidecar(upstream)
        redis = stable.redis()
        with_redis = [stable.sidecar(upstream, redis)] if redis is not None else []
        contestants = [stable.nginx("return", upstream, ANSWER), sidecar, stable.nginx("cache", upstream, ANSWER)]
        if not arguments.quick:
            contestants += [stable.starlette(upstream), stable.litellm(upstream)]
        proxy = stable.nginx("proxy", upstream, ANSWER)
        hits = measure_hits(contestants, folder, arguments.rounds, arguments.seconds)
        misses = {}
        for where, core in (("one core", SERVER_CORE), ("gateway on its own core", CLIENT_CORE)):
            upstream.pin(core)
            for server in (proxy, *with_redis, *([redis] if redis else [])):
                server.pin(SERVER_CORE)
            compared = [upstream, sidecar, *with_redis, proxy]
            misses[where] = measure_misses(compared, arguments.samples, core, where)
        results: dict[str, Any] = {"hits": hits, "misses": misses}
        results["chunks"] = {
            server.name: measure_chunks(server, 32, 300, f"chunks {server.name}") for server in (sidecar, proxy)
        }
        results["hits_beside_64_streams"] = measure_mixed(sidecar, folder, max(arguments.seconds, 2))
        results["thousand_streams"] = measure_thousand(sidecar)
        results["memory"] = measure_memory(sidecar, 20_000)
        results["ratios"] = ratios(results)
        results["cpu_ratios"] = hit_ratios(hits, "sidecar_cpu_ratio")
        return results


def main() -> int:
    """Exit code 3 when a tool is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run of wrk")
    parser.add_argument("--samples", type=int, default=1500, help="misses measured for each contestant")
    parser.add_argument("--quick", action="store_true", help="without LiteLLM and Starlette, which need a download")
    parser.add_argument("--output", type=Path, default=Path("build/bench/sidecar.json"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the servers are ended too
    try:
        with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
            results = run(arguments, Path(folder))
    except MissingToolError as error:
        print(f"bench-sidecar: {error}", file=sys.stderr)
        return 3
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    report(results)
    print(f"\nwritten: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

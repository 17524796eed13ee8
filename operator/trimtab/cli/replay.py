"""`trimtab replay`: send a request trace to a server and report what it took."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from trimtab.api.schema import parse_duration
from trimtab.replay.client import Outcomes, Progress, Target, replay
from trimtab.replay.readers import TraceFormatError
from trimtab.replay.registry import Places, Selection, TraceNotFoundError, find_lengths, find_trace, known_names
from trimtab.replay.report import Objective, build_report, rows
from trimtab.replay.trace import Trace, head, speed_up, with_lengths, with_repeats

PLAIN_PROGRESS_SECONDS = 5.0


class DurationType(click.ParamType[float]):
    """`500ms`, `2s`, `10m`, or a bare number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, above zero."""
        try:
            seconds = float(value) if _is_number(value) else parse_duration(str(value))
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} must be longer than zero", param, ctx)
        return seconds


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


DURATION = DurationType()


@click.command()
@click.option("--trace", "name", required=True, help="Name (see --list) or path of a trace.")
@click.option("--url", required=True, help="Base address of the server, for instance http://127.0.0.1:8080.")
@click.option("--api", type=click.Choice(["openai", "tgi"]), default="openai", show_default=True)
@click.option("--stream/--no-stream", default=True, show_default=True, help="TTFT and TPOT need streams.")
@click.option("--model", default="tgi", show_default=True, help="Model name in OpenAI requests.")
@click.option("--start", type=DURATION, default=None, help="Begin so far into the trace.")
@click.option("--duration", type=DURATION, default="5m", show_default=True, help="How long to send, in real time.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Mean requests/s, burstiness kept.")
@click.option("--repeat-ratio", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True)
@click.option("--lengths", help="Take token lengths from this distribution instead (vidur-arxiv-summarization).")
@click.option("--max-requests", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--max-input-tokens", type=click.IntRange(min=1), help="Cut longer prompts.")
@click.option("--max-output-tokens", type=click.IntRange(min=1), help="Cut longer answers.")
@click.option("--keepalive/--no-keepalive", default=False, help="Reuse connections. A Service balances new ones only.")
@click.option("--timeout", type=DURATION, default="120s", show_default=True, help="Of one request.")
@click.option("--header", "headers", multiple=True, help="More request headers, `Name: value`.")
@click.option("--slo-ttft", type=DURATION, help="Bound for the attainment.")
@click.option("--slo-tpot", type=DURATION, help="Bound for the attainment.")
@click.option("--slo-latency", type=DURATION, help="Bound for the attainment.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--traces", type=click.Path(path_type=Path, file_okay=False), help="Folder of traces [TRIMTAB_TRACES].")
@click.option("--offline", is_flag=True, help="Do not try to download the trace.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the report here ('-': stdout).")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=lambda c, _p, v: _list(c, v))
def command(
    name: str,
    url: str,
    api: Literal["openai", "tgi"],
    stream: bool,
    model: str,
    start: float | None,
    duration: float,
    speed: float,
    rate: float | None,
    repeat_ratio: float,
    lengths: str | None,
    max_requests: int,
    max_input_tokens: int | None,
    max_output_tokens: int | None,
    keepalive: bool,
    timeout: float,
    headers: tuple[str, ...],
    slo_ttft: float | None,
    slo_tpot: float | None,
    slo_latency: float | None,
    seed: int,
    traces: Path | None,
    offline: bool,
    json_path: Path | None,
) -> None:
    """Send a request trace to a server, open loop, and report percentiles, rates, errors and cache hits.

    --rate sets the mean rate after --speed; --duration is real time, so speed times duration of the trace is played.
    Exit code 1 when no request succeeded.
    """
    # A trace sped up by X at rate R was recorded at R/X and lasts X times as long.
    selection = Selection(None if rate is None else rate / speed, start or 0.0, duration * speed, seed)
    try:
        places = Places(traces, download=not offline)
        trace = find_trace(name, selection, places)
        if lengths is not None:
            trace = with_lengths(trace, *find_lengths(lengths, places), seed)
    except (TraceNotFoundError, TraceFormatError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    trace = head(with_repeats(speed_up(trace, speed), repeat_ratio, seed), max_requests)
    trace = _cut_lengths(trace, max_input_tokens, max_output_tokens)
    if len(trace) == 0:
        raise click.UsageError(f"no request of {name} falls into the chosen window")
    target = Target(url, api, stream, model, timeout, keepalive=keepalive, headers=_parse_headers(headers))
    outcomes = _run(trace, target)
    report = build_report(trace, outcomes, Objective(slo_ttft, slo_tpot, slo_latency), url)
    if json_path is None or str(json_path) != "-":
        _print_table(report)
    if json_path is not None:
        text = json.dumps(report, indent=2) + "\n"
        if str(json_path) == "-":
            click.echo(text, nl=False)
        else:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(text)
    if report["succeeded"] == 0:
        sys.exit(1)


def _list(context: click.Context, wanted: bool) -> None:
    if wanted:
        click.echo("\n".join(known_names()))
        context.exit()


def _cut_lengths(trace: Trace, most_in: int | None, most_out: int | None) -> Trace:
    return replace(
        trace,
        input_tokens=trace.input_tokens.clip(1, most_in),
        output_tokens=trace.output_tokens.clip(1, most_out),
    )


def _parse_headers(headers: tuple[str, ...]) -> dict[str, str]:
    parsed = {}
    for header in headers:
        key, separator, value = header.partition(":")
        if not separator or not key.strip():
            raise click.UsageError(f"--header {header!r}: write it as 'Name: value'")
        parsed[key.strip()] = value.strip()
    return parsed


def _run(trace: Trace, target: Target) -> Outcomes:
    source = trace.source
    click.echo(
        f"{trace.name} ({source.origin}): {len(trace)} requests in {trace.span_s:.0f} s to {target.route()}", err=True
    )
    if not sys.stderr.isatty():
        return _execute(replay(trace, target, _plain_progress()))
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(trace))

        def show(progress: Progress) -> None:
            text = f"{progress.sent - progress.finished} open, {progress.failed} failed"
            bar.update(task, completed=progress.finished, description=text)

        return _execute(replay(trace, target, show))


def _execute(work: Coroutine[Any, Any, Outcomes]) -> Outcomes:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    outcomes: Outcomes = uvloop.run(work)
    return outcomes


def _plain_progress() -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < PLAIN_PROGRESS_SECONDS and progress.finished < progress.total:
            return
        last = time.monotonic()
        open_requests = progress.sent - progress.finished
        click.echo(
            f"{progress.elapsed_s:6.0f} s  sent {progress.sent}/{progress.total}"
            f"  open {open_requests}  failed {progress.failed}",
            err=True,
        )

    return show


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in rows(report):
        table.add_row(what, value)
    Console(width=None if sys.stdout.isatty() else 200).print(table)

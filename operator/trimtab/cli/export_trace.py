"""`trimtab export-trace`: your own traffic, read from Prometheus, as a trace for `trimtab replay` and `simulate`."""

import csv
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from trimtab.cli.replay import DURATION
from trimtab.replay.synthesis import arrivals_from_rates
from trimtab.telemetry.export import read_traffic
from trimtab.telemetry.prometheus import Prometheus, PrometheusSettings, TelemetryUnavailableError
from trimtab.telemetry.queries import Labels


@click.command()
@click.argument("deployment")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--prometheus", "url", required=True, help="Address of Prometheus.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True), help="Bearer token for it.")
@click.option("--last", type=DURATION, default="24h", show_default=True, help="How far back.")
@click.option("--until", help="End, as 2025-01-31T12:00:00Z; default: now.")
@click.option("--step", type=click.IntRange(min=15), default=60, show_default=True, help="Seconds of one reading.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; default: standard output.")
def command(
    deployment: str,
    namespace: str,
    url: str,
    token_file: Path | None,
    last: float,
    until: str | None,
    step: int,
    seed: int,
    out: Path | None,
) -> None:
    """Write the traffic of DEPLOYMENT as a request trace (t_s,in_tokens,out_tokens).

    Prometheus knows rates and mean lengths, not single requests: arrivals are spread at random within each reading
    (Poisson), and every request of a reading has its mean lengths. Rates are exact, single requests are not.
    """
    try:
        end = datetime.fromisoformat(until).astimezone(UTC).timestamp() if until else time.time()
        connection = Prometheus(PrometheusSettings(url, token_file=token_file))
        traffic = read_traffic(connection, Labels(), (namespace, deployment), end - last, end, step)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except TelemetryUnavailableError as error:
        raise click.ClickException(str(error)) from error
    if not traffic:
        raise click.ClickException(f"Prometheus knows no requests of {namespace}/{deployment} in that time")
    rows = arrivals_from_rates(traffic, step, seed)
    if out is None:
        _write(csv.writer(sys.stdout), rows)
        return
    with out.open("w", newline="", encoding="utf-8") as file:
        _write(csv.writer(file), rows)
    click.echo(f"wrote {len(rows)} requests to {out}", err=True)


def _write(writer: Any, rows: list[tuple[float, int, int]]) -> None:
    writer.writerow(("t_s", "in_tokens", "out_tokens"))
    writer.writerows((f"{at:.3f}", tokens_in, tokens_out) for at, tokens_in, tokens_out in rows)

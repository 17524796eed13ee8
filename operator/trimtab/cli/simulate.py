"""`trimtab simulate`: what would this objective cost on this traffic, under which policy?"""

import json
import sys
from pathlib import Path
from typing import Any

import click

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_manifest
from trimtab.cli.plan import answer_manifest, exit_code, read_manifest
from trimtab.cli.replay import DURATION
from trimtab.plan.types import ServingPlan
from trimtab.replay.readers import TraceFormatError
from trimtab.replay.registry import Places, Selection, TraceNotFoundError, find_trace
from trimtab.replay.trace import Trace
from trimtab.simulation.balancing import BalancerName
from trimtab.simulation.compare.exact import ExactFleet
from trimtab.simulation.compare.fluid import Load, Site
from trimtab.simulation.compare.html import write_html
from trimtab.simulation.compare.report import (
    Player,
    best_tuned,
    default_policies,
    entry,
    play,
    prepare,
    report,
    tuned_grid,
)
from trimtab.tuning.objectives import build_objectives
from trimtab.tuning.replicas import percentile_of
from trimtab.tuning.steptime import Mix, planned_model
from trimtab.tuning.types import Objectives

DAY_S = 86_400.0
DEFAULT_POLICIES = ("trimtab", "hpa", "knative-kpa", "wva-token-v2", "dynamo-kalman")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--trace", "name", required=True, help="Name or path of a request trace (see trimtab replay --list).")
@click.option("--policy", "policies", multiple=True, help="Policies to compare; `all` for every one.")
@click.option("--tuned", is_flag=True, help="Also the baselines in the form that does best on this very trace.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Days of the trace to play.")
@click.option("--start", type=DURATION, help="Begin so far into the trace.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Mean requests/s, burstiness kept.")
@click.option("--fluid", is_flag=True, help="Model flows instead of single requests: for traces of many days.")
@click.option(
    "--balancer",
    type=click.Choice(["random", "round-robin", "least-outstanding"]),
    default="random",
    show_default=True,
    help="How requests reach pods (a Service: random).",
)
@click.option("--cold-start", type=DURATION, default="2m", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--traces", type=click.Path(path_type=Path, file_okay=False), help="Folder of traces [TRIMTAB_TRACES].")
@click.option("--offline", is_flag=True, help="Do not try to download the trace.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write report.json and report.html here.")
def command(
    file: Path,
    name: str,
    policies: tuple[str, ...],
    tuned: bool,
    days: float | None,
    start: float | None,
    rate: float | None,
    fluid: bool,
    balancer: BalancerName,
    cold_start: float,
    seed: int,
    traces: Path | None,
    offline: bool,
    out: Path | None,
) -> None:
    """Compare scaling policies for the LLMDeployment in FILE on a request trace, in a fluid model of the fleet.

    The first ten minutes warm the fleet up and are not scored. GPU-hours include cold starts and drains.
    """
    objectives, plan = _objectives(file, cold_start)
    selection = Selection(rate, start or 0.0, days * DAY_S if days else None, seed)
    try:
        trace = find_trace(name, selection, Places(traces, download=not offline))
    except (TraceNotFoundError, TraceFormatError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    makers = default_policies(objectives)
    wanted = list(makers) if "all" in policies else list(policies or DEFAULT_POLICIES)
    unknown = sorted(set(wanted) - set(makers))
    if unknown:
        raise click.UsageError(f"unknown policy {', '.join(unknown)}: known are {', '.join(makers)}, all")
    site = site_of(trace, objectives)

    def exact(load: Load) -> Player:
        return ExactFleet(plan, load, site, balancer, seed).run

    scenario = prepare(trace, site, objectives.slo, percentile_of(objectives), None if fluid else exact)
    gpus = plan.option.gpus_per_replica
    runs = {policy: play(scenario, makers[policy]()) for policy in wanted}
    if tuned:
        grid = tuned_grid(scenario)
        runs |= {f"{policy} (tuned here)": best_tuned(scenario, settings) for policy, settings in grid.items()}
    document = report(
        scenario,
        [entry(scenario, policy, played, gpus) for policy, played in runs.items()],
        gpus,
        "fluid fleet" if fluid else f"request-level fleet, {balancer} balancing",
    )
    _print(document)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(document, indent=2) + "\n")
        write_html(out / "report.html", document, scenario, runs)
        click.echo(f"wrote {out / 'report.json'} and {out / 'report.html'}", err=True)


def _objectives(file: Path, cold_start: float) -> tuple[Objectives, ServingPlan]:
    try:
        manifest = read_manifest(file)
        spec = parse_manifest(manifest)
    except InvalidSpecError as invalid:
        raise click.UsageError("; ".join(error.sentence() for error in invalid.errors)) from invalid
    result = answer_manifest(manifest, None, None, hub=False)
    if result.plan is None:
        for error in result.errors:
            click.echo(error.sentence(), err=True)
        sys.exit(exit_code(result))
    objectives = build_objectives(spec, result.plan, cold_start_s=cold_start)
    if not objectives.slo:
        raise click.UsageError("spec.slo states no objective: there is nothing to compare policies by")
    return objectives, result.plan


def site_of(trace: Trace, objectives: Objectives) -> Site:
    """The plan's replica under this trace's mean request."""
    if objectives.step is None:
        raise click.UsageError("the plan has no step times for this model and GPU: nothing can be simulated")
    mix = Mix(float(trace.input_tokens.mean()), float(trace.output_tokens.mean()))
    model = planned_model(objectives.step, mix, objectives.prefill_budget)
    kv_bound = (objectives.kv_tokens or 10**9) / (mix.input_tokens + mix.output_tokens)
    limit = min(objectives.planned_limit or 64, objectives.engine_concurrency or 10**6, int(kv_bound))
    for target in objectives.slo.tpot.values():
        limit = min(limit, int(model.batch_for(0.95 * target)))
    if limit < 1:
        raise click.UsageError("not even one request at a time keeps this objective on the planned hardware")
    return Site(model, limit, cold_start_s=round(objectives.cold_start_s), max_replicas=objectives.max_replicas)


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{document['trace']} ({document['origin']}, {document['requests']} requests)")
    for column in ("policy", "within SLO", "GPU-hours", "× optimum", "TTFT p99", "TPOT p99", "scale events"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in document["policies"]:
        table.add_row(
            row["name"],
            f"{row['sloAttainment']:.2%}",
            f"{row['gpuHours']:.2f}",
            f"{row['costRatioToOracle']:.2f}",
            f"{row['p99']['ttftMs']:,.0f} ms",
            f"{row['p99']['tpotMs']:,.1f} ms",
            str(row["scaleEvents"]),
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    low, high = document["oracle"]["gpuHoursLow"], document["oracle"]["gpuHoursHigh"]
    console.print(f"clairvoyant optimum: between {low:.2f} and {high:.2f} GPU-hours; differences under 3 % are noise")

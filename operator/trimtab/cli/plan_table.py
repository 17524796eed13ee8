"""A plan for people: what was chosen, why, and why not the others."""

from collections import Counter

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trimtab.plan.types import Option, PlanResult, Rejection, RejectionKind, ServingPlan

SHOWN_OPTIONS = 20
_WHY_NOT = {
    RejectionKind.DEARER: "works, but dearer",
    RejectionKind.QUALITY: "costs quality",
    RejectionKind.SLO: "too slow",
    RejectionKind.MEMORY: "does not fit",
    RejectionKind.RULE: "cannot run",
}


def print_plan(result: PlanResult, *, show_all: bool = False, console: Console | None = None) -> None:
    """Print the result to the terminal."""
    out = console or Console()
    if result.plan is not None:
        out.print(_chosen(result.plan))
    for error in result.errors:
        out.print(Text(f"✗ {error.sentence()}", style="red"))
    if not result.options:
        return
    rows = list(zip(result.options, result.rejections, strict=True))
    shown = rows if show_all else _most_telling(rows)
    out.print(_table(shown))
    hidden = len(rows) - len(shown)
    if hidden:
        kinds = Counter(why.kind for _, why in rows if why is not None)
        summary = ", ".join(f"{count} {_WHY_NOT[kind]}" for kind, count in sorted(kinds.items()))
        out.print(f"{len(rows)} configurations looked at: {summary}. --all shows them, -o json tells everything.")


def _most_telling(rows: list[tuple[Option, Rejection | None]]) -> list[tuple[Option, Rejection | None]]:
    """The nearest configuration for each number format and GPU."""
    seen: set[tuple[str, str, str]] = set()
    first = []
    for option, why in rows:
        key = (option.model, option.quantization, option.gpu)
        if key not in seen:
            seen.add(key)
            first.append((option, why))
    return first[:SHOWN_OPTIONS]


def _chosen(plan: ServingPlan) -> Panel:
    option = plan.option
    lines = [
        f"[bold]{option.model}[/bold], weights {option.quantization}, KV cache {option.kv_dtype}, "
        f"{option.gpus_per_replica} x {option.gpu}, {option.engine}",
        f"prompts to {plan.max_input_tokens} tokens, {plan.max_total_tokens} with the answer; "
        f"KV cache of {plan.kv_tokens} tokens",
        f"a replica: batch {plan.max_batch_within_slo}, {plan.requests_per_second:.2f} requests/s, "
        f"{plan.tokens_per_second:.0f} tokens/s, TTFT {option.ttft_ms or 0:.0f} ms, TPOT {option.tpot_ms or 0:.1f} ms"
        + (" [yellow](estimate)[/yellow]" if plan.estimate else ""),
        _cost_line(plan),
        "",
        *(f"• {reason}" for reason in option.reasons),
        "",
        "[dim]" + " ".join(option.launcher_args) + "[/dim]",
    ]
    return Panel("\n".join(lines), title="chosen", title_align="left", border_style="green")


def _cost_line(plan: ServingPlan) -> str:
    if plan.cost_per_hour is None or plan.option.cost_per_million_tokens is None:
        return "no price known: set hardware.pricePerGpuHour"
    return f"{plan.cost_per_hour:.2f} USD an hour, {plan.option.cost_per_million_tokens:.2f} USD a million tokens"


def _table(rows: list[tuple[Option, Rejection | None]]) -> Table:
    table = Table(show_lines=True, header_style="bold", expand=True)
    several = len({option.model for option, _ in rows}) > 1
    table.add_column("configuration, and why not", ratio=1)
    for name in ("KV tokens", "TPOT ms", "req/s", "USD/1M"):
        table.add_column(name, justify="right", no_wrap=True)
    for option, why in rows:
        cell = Text(_label(option, several=several), style="bold green" if why is None else "bold")
        cell.append(f"\n{why.reason if why else 'chosen'}", style="not bold")
        table.add_row(
            cell,
            str(option.kv_tokens) if option.fits else "-",
            _number(option.tpot_ms, 1),
            _number(option.requests_per_second, 2),
            _number(option.cost_per_million_tokens, 2),
        )
    return table


def _label(option: Option, *, several: bool) -> str:
    model = f"{option.model.rpartition('/')[2]} " if several else ""
    kv = " with FP8 KV cache" if option.kv_dtype.startswith("fp8") else ""
    return f"{model}{option.quantization} on {option.gpus_per_replica}x{option.gpu}{kv}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

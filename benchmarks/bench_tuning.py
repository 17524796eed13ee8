"""`make bench-tuning`: one untuned Trimtab beside every baseline, in its defaults and tuned on the very trace.

Writes build/bench/tuning.json: {"traces": [report.json of each]}. Fluid fleet, three seeds where a trace is drawn from
tables; the first ten minutes are not scored; boots and drains are paid. Traces as `trimtab replay` finds them.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.plan.types import SloTargets, StepCoefficients
from trimtab.replay.registry import Places, Selection, find_lengths, find_trace
from trimtab.replay.trace import Trace, with_lengths
from trimtab.simulation.compare.fluid import Site
from trimtab.simulation.compare.report import best_tuned, default_policies, entry, play, prepare, report, tuned_grid
from trimtab.tuning.steptime import Mix, planned_model
from trimtab.tuning.types import Objectives

OUT = Path("build/bench/tuning.json")
# Composed from published kernel times (docs/planner.md): Llama-3-8B in bf16 on an A100-80GB, and Llama-3-70B on four.
SMALL = StepCoefficients(const_ms=11.1, per_sequence_ms=0.042, per_kv_token_ms=8.3e-5, per_prefill_token_ms=0.054)
LARGE = StepCoefficients(const_ms=29.0, per_sequence_ms=0.099, per_kv_token_ms=5.1e-5, per_prefill_token_ms=0.155)
SLO = SloTargets(ttft={0.99: 3.0}, tpot={0.99: 0.1})
FLEET = 8.0
"""Mean replicas' worth of work: every trace is rescaled to it."""
LENGTHS = "vidur-arxiv-summarization"


@dataclass(frozen=True, slots=True)
class Case:
    """A trace, the machine that serves it, and how much of it is played."""

    name: str
    step: StepCoefficients
    days: float | None = None
    seeds: tuple[int, ...] = (0,)
    lengths: str | None = None
    """Other lengths than the trace's own: short requests at many hundreds a second take too long to play."""


CASES = (
    Case("azure-2023-conv", SMALL),
    Case("azure-2023-code", SMALL),
    Case("servegen-m-small", LARGE, 1.0, (0, 1, 2), LENGTHS),
    Case("servegen-m-mid", LARGE, 1.0, (0, 1, 2), LENGTHS),
)


def load_trace(case: Case, selection: Selection) -> Trace:
    """The case's trace with its lengths."""
    trace = find_trace(case.name, selection, Places())
    return trace if case.lengths is None else with_lengths(trace, *find_lengths(case.lengths), selection.seed)


def site_for(trace: Trace, step: StepCoefficients) -> tuple[Site, Objectives]:
    """The fleet and the objectives for this trace's mean request."""
    mix = Mix(float(trace.input_tokens.mean()), float(trace.output_tokens.mean()))
    full = planned_model(step, mix, 4096)
    limit = max(min(int(full.batch_for(0.095)), 128), 1)
    site = Site(full, limit, cold_start_s=120, drain_s=30, max_replicas=400)
    objectives = Objectives(
        slo=SLO, max_replicas=400, engine_concurrency=limit, step=step, planned_limit=limit, prefill_budget=4096
    )
    return site, objectives


def run_case(case: Case, seed: int) -> dict[str, Any]:
    """report.json of one trace, rescaled to a mean of `FLEET` busy replicas; defaults and tuned."""
    sample, _ = site_for(load_trace(case, Selection(rate=2.0, duration_s=3000.0, seed=seed)), case.step)
    duration = case.days * 86_400.0 if case.days else None
    trace = load_trace(case, Selection(FLEET * sample.capacity(), 0.0, duration, seed))
    site, objectives = site_for(trace, case.step)
    scenario = prepare(trace, site, SLO, 0.99)
    entries = [
        entry(scenario, policy, play(scenario, make()), 1) for policy, make in default_policies(objectives).items()
    ]
    for policy, makers in tuned_grid(scenario).items():
        entries.append(entry(scenario, f"{policy} (tuned on this trace)", best_tuned(scenario, makers), 1))
    return {**report(scenario, entries, 1, "fluid fleet"), "seed": seed}


def main() -> int:
    """Run every case; print and write the table."""
    documents = []
    for case in CASES:
        for seed in case.seeds:
            document = run_case(case, seed)
            documents.append(document)
            print(f"\n{case.name} seed {seed} ({document['origin']}, {document['requests']} requests)", flush=True)
            for row in document["policies"]:
                print(f"  {row['name']:44} {row['sloAttainment']:8.2%} {row['costRatioToOracle']:7.3f} × optimum")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"traces": documents}, indent=1) + "\n")
    print(f"\nwrote {OUT}; differences under 3 % are noise")
    return 0


if __name__ == "__main__":
    sys.exit(main())

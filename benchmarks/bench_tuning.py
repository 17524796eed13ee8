"""`make bench-tuning`: one untuned Trimtab beside every baseline, in its defaults and tuned on the very trace.

Writes build/bench/tuning.json: {"traces": [report.json of each]}. Fluid fleet, three seeds where a trace is drawn from
tables; the first ten minutes are not scored; boots and drains are paid. Traces as `trimtab replay` finds them.
"""

import json
import sys
from pathlib import Path

from trimtab.plan.types import SloTargets, StepCoefficients
from trimtab.replay.registry import Places, Selection, find_trace
from trimtab.replay.trace import Trace
from trimtab.simulation.compare.fluid import Site
from trimtab.simulation.compare.report import best_tuned, default_policies, entry, play, prepare, report, tuned_grid
from trimtab.tuning.steptime import Mix, planned_model
from trimtab.tuning.types import Objectives

OUT = Path("build/bench/tuning.json")
# Llama-3-8B in bf16 on an A100-80GB: composed from published kernel times (see docs/planner.md).
STEP = StepCoefficients(const_ms=11.1, per_sequence_ms=0.042, per_kv_token_ms=8.3e-5, per_prefill_token_ms=0.054)
SLO = SloTargets(ttft={0.99: 2.0}, tpot={0.99: 0.1})
FLEET = 8.0
"""Mean replicas' worth of work: every trace is rescaled to it."""
CASES = (
    ("azure-2023-conv", None, (0,)),
    ("azure-2023-code", None, (0,)),
    ("servegen-m-small", 2.0, (0, 1, 2)),
    ("servegen-m-mid", 2.0, (0, 1, 2)),
)


def site_for(trace: Trace) -> tuple[Site, Objectives]:
    """The fleet and the objectives for this trace's mean request."""
    mix = Mix(float(trace.input_tokens.mean()), float(trace.output_tokens.mean()))
    full = planned_model(STEP, mix, 4096)
    limit = max(min(int(full.batch_for(0.095)), 128), 1)
    site = Site(full, limit, cold_start_s=120, drain_s=30, max_replicas=400)
    objectives = Objectives(
        slo=SLO, max_replicas=400, engine_concurrency=limit, step=STEP, planned_limit=limit, prefill_budget=4096
    )
    return site, objectives


def rate_for(name: str, seed: int) -> float:
    """Requests/s at which a mean of `FLEET` replicas is busy."""
    sample = find_trace(name, Selection(rate=2.0, duration_s=3000.0, seed=seed))
    site, _ = site_for(sample)
    return FLEET * site.capacity()


def run_case(name: str, days: float | None, seed: int) -> dict[str, object]:
    """report.json of one trace, defaults and tuned."""
    selection = Selection(rate_for(name, seed), 0.0, days * 86_400.0 if days else None, seed)
    trace = find_trace(name, selection, Places())
    site, objectives = site_for(trace)
    scenario = prepare(trace, site, SLO, 0.99)
    entries = [
        entry(scenario, policy, play(scenario, make()), 1) for policy, make in default_policies(objectives).items()
    ]
    for policy, makers in tuned_grid(scenario).items():
        entries.append(entry(scenario, f"{policy} (tuned on this trace)", best_tuned(scenario, makers), 1))
    document = report(scenario, entries, 1, "fluid fleet")
    document["seed"] = seed
    return document


def main() -> int:
    """Run every case; print and write the table."""
    documents = []
    for name, days, seeds in CASES:
        for seed in seeds:
            document = run_case(name, days, seed)
            documents.append(document)
            print(f"\n{name} seed {seed} ({document['origin']})")
            for row in document["policies"]:  # type: ignore[attr-defined]
                print(f"  {row['name']:44} {row['sloAttainment']:8.2%} {row['costRatioToOracle']:7.3f} × optimum")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"traces": documents}, indent=1) + "\n")
    print(f"\nwrote {OUT}; differences under 3 % are noise")
    return 0


if __name__ == "__main__":
    sys.exit(main())

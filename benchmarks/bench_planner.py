"""How many configurations a second the planner looks at: every model x GPU x quantization, on one core.

Planning must never show in a reconcile. Each model is planned once, cold: nothing is remembered from the plan before
except the catalogue itself. `make bench-planner` runs it.
"""

import json
import statistics
import sys
import time

from trimtab.catalog.catalogue import load_catalogue
from trimtab.engines.registry import ENGINES
from trimtab.plan.choose import plan
from trimtab.plan.from_spec import catalogue_pools
from trimtab.plan.steps import CatalogueSteps
from trimtab.plan.types import PlanRequest, SloTargets

REQUIRED_PER_SECOND = 10_000
SLO = SloTargets(ttft={0.95: 2.0}, tpot={0.95: 0.05})


def run() -> dict[str, object]:
    """Plan the whole catalogue with each engine; counts and seconds of processor time."""
    catalogue = load_catalogue()
    pools = catalogue_pools(catalogue)
    steps = CatalogueSteps()
    engines: dict[str, dict[str, float]] = {}
    total_options, total_seconds = 0, 0.0
    for name, engine in sorted(ENGINES.items()):
        options, seconds = 0, []
        for model in catalogue.models:
            began = time.process_time()
            result = plan(PlanRequest(models=(model,), pools=pools, engine=name, slo=SLO), engine, steps)
            seconds.append(time.process_time() - began)
            options += len(result.options)
        engines[name] = {
            "options": options,
            "optionsPerSecond": round(options / sum(seconds)),
            "medianPlanMs": round(statistics.median(seconds) * 1000, 1),
            "slowestPlanMs": round(max(seconds) * 1000, 1),
        }
        total_options += options
        total_seconds += sum(seconds)
    return {
        "models": len(catalogue.models),
        "gpus": len(catalogue.gpus),
        "options": total_options,
        "seconds": round(total_seconds, 2),
        "optionsPerSecond": round(total_options / total_seconds),
        "engines": engines,
    }


def main() -> int:
    """Print the figures as JSON; exit code 1 below the required rate."""
    figures = run()
    print(json.dumps(figures, indent=2))
    rate = figures["optionsPerSecond"]
    return 0 if isinstance(rate, int) and rate >= REQUIRED_PER_SECOND else 1


if __name__ == "__main__":
    sys.exit(main())

"""Trimtab in the fluid fleet: the very functions that the operator runs, fed with what telemetry would show."""

from trimtab.simulation.compare.fluid import View
from trimtab.tuning.decide import decide
from trimtab.tuning.memory import Memory
from trimtab.tuning.types import Decision, Lever, Objectives, Observation, Percentiles


class Trimtab:
    """One deployment under `decide`; `decisions` keeps what was decided and why."""

    name = "trimtab"

    def __init__(self, objectives: Objectives) -> None:
        self.objectives = objectives
        self.memory = Memory()
        self.decisions: list[Decision] = []

    @property
    def limit(self) -> int | None:
        """The live limit decided last; fleets that can set it do."""
        return self.memory.limit

    def replicas(self, view: View) -> int:
        """One tick."""
        served = min(view.arrivals_per_s, view.capacity * view.ready)
        observation = Observation(
            time=view.time,
            age_s=5.0,
            pods_reporting=view.ready,
            replicas_wanted=view.wanted,
            replicas_ready=view.ready,
            replicas_pending=view.pending,
            arrivals_per_s=view.arrivals_per_s,
            arrivals_now_per_s=view.arrivals_now_per_s,
            served_per_s=served,
            rejected_per_s=0.0,
            errors_per_s=0.0,
            hit_ratio=0.0,
            in_flight=view.running,
            queued=view.waiting,
            limit=float(view.limit),
            tokens_in_per_s=served * view.input_tokens,
            tokens_out_per_s=served * view.output_tokens,
            ttft=Percentiles(*view.ttft_p),
            tpot=Percentiles(*view.tpot_p),
            ttft_mean=view.ttft_mean,
            tpot_mean=view.tpot_mean,
        )
        made, self.memory = decide(observation, self.objectives, self.memory, view.time)
        self.decisions += made
        wanted = [decision for decision in made if decision.lever is Lever.REPLICAS]
        return int(wanted[-1].to_value) if wanted else view.wanted

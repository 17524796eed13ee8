"""Step times from the catalogue, in the linear form that the planner calculates with."""

from dataclasses import dataclass, field

from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.steptime import build_step_time_model
from trimtab.plan.types import StepCoefficients

MAX_REMEMBERED = 65_536
"""Combinations kept between plans."""


@dataclass
class CatalogueSteps:
    """Looks step times up and remembers them, since a controller plans the same few models again and again."""

    _known: dict[tuple[object, ...], StepCoefficients] = field(default_factory=dict)

    def __call__(self, model: ModelFacts, quantization: str, gpu: GpuFacts, shards: int) -> StepCoefficients | None:
        """Coefficients of a replica, published or scaled from the nearest published ones."""
        key = (*_shape(model), quantization, gpu.id, gpu.bandwidth_gb_s, gpu.fp16_tflops, gpu.bf16_tflops, shards)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            known = _coefficients(model, quantization, gpu, shards)
            self._known[key] = known
        return known


step_coefficients = CatalogueSteps()
"""The catalogue's step times."""


def _shape(model: ModelFacts) -> tuple[object, ...]:
    """What step times depend on."""
    return (
        model.id,
        model.num_layers,
        model.hidden_size,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        model.intermediate_size,
        model.vocab_size,
        model.checkpoint and model.checkpoint.bits,
        model.checkpoint_bytes,
    )


def _coefficients(model: ModelFacts, quantization: str, gpu: GpuFacts, shards: int) -> StepCoefficients:
    times = build_step_time_model(model, gpu, quantization, shards)
    linear = times.linear()
    return StepCoefficients(
        const_ms=linear.const_ms,
        per_sequence_ms=linear.per_sequence_ms,
        per_kv_token_ms=linear.per_kv_token_ms,
        per_prefill_token_ms=linear.per_prefill_token_ms,
        per_prefill_token_squared_ms=linear.per_prefill_token_squared_ms,
        estimate=times.estimate,
        source=times.source,
    )

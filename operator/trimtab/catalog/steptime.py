"""How long one forward pass of a replica takes.

    step_ms = h + h_s x S + G(T) + H(S) + [B > 0] (d0 + d1 x KV) + [P > 0] (p0 + p1 x P + p2 x sum((c + n)^2 - c^2))

B decoding sequences with KV cached tokens together; prompts bring P tokens, n of each after c that are cached already;
T = B + P tokens in the pass; S sequences whose next token is computed. G (matrix products) and H (output head) are
interpolated between measured points. The measured kernels, with sources, are in data/perf_coefficients.json; the form
is Vidur's (arXiv 2405.05465).

A combination without measurements is scaled from the nearest one by roofline: G at the same ratio of computing to
reading time, times the ratio of the reading times. So the efficiency of the measured kernels carries over. Such a
model says so (`estimate`).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType

from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.kernels import (
    INSTEAD,
    INT4_WEIGHTS,
    INT8_WEIGHTS,
    PLAIN,
    Kernels,
    Replica,
    kernel_format,
    measured_replica,
    measurements,
)
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.parameters import count_parameters
from trimtab.catalog.quantization import weight_format

TABLE_TOKENS = 4096
"""Passes up to this size are looked up, larger ones interpolated on each call."""
TABLE_SEQUENCES = 256
"""The same for the output head."""

_SLOWDOWN = MappingProxyType({"bitsandbytes": 2.5, "bitsandbytes-nf4": 1.7, "bitsandbytes-fp4": 1.7})
"""Over the 16-bit time. ESTIMATES from single published points: int8 2.5 times slower (T4) to 6.7 times
(bitsandbytes#181), 4 bits 1.7 times (0.6 of the 16-bit speed, bitsandbytes#696)."""
_PCIE_BYTES_PER_MS = 16e6
_PCIE_LATENCY_MS = 0.03
"""All-reduce without a direct link between GPUs, two a layer. ESTIMATES; all measured shards had NVLink."""
_FITTED_BATCHES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
_FITTED_PROMPTS = (64, 128, 256, 512, 768, 1024, 1536, 2048)
_FITTED_DECODING = 32


@dataclass(frozen=True, slots=True)
class LinearStep:
    """Straight-line form of a step-time model, all in ms; fitted on 1 to 128 sequences and prompts to 2,048 tokens."""

    const_ms: float
    per_sequence_ms: float
    per_kv_token_ms: float
    per_prefill_token_ms: float
    per_prefill_token_squared_ms: float


@dataclass(frozen=True)
class StepTimeModel:
    """Time of passes of one replica, in ms. Build with `step_time_model`."""

    gemm_points: tuple[tuple[float, ...], tuple[float, ...]] = field(repr=False)
    """Tokens and ms of the measured points."""
    head_points: tuple[tuple[float, ...], tuple[float, ...]] = field(repr=False)
    """Sequences and ms of the measured points."""
    host_ms: float
    host_sequence_ms: float
    decode_const_ms: float
    kv_token_ms: float
    """Of a decode step, for each cached token of all decoding sequences."""
    prefill_const_ms: float
    prefill_token_ms: float
    prefill_square_ms: float
    estimate: bool
    """True: scaled from another model or GPU."""
    source: str

    @cached_property
    def gemm(self) -> tuple[float, ...]:
        """Matrix products by tokens of the pass, from 0: the points looked up instead of interpolated."""
        tokens, times = self.gemm_points
        return tuple(_interpolate(tokens, times, float(count)) for count in range(TABLE_TOKENS + 1))

    @cached_property
    def head(self) -> tuple[float, ...]:
        """Output head by sequences, from 0; continues as a line."""
        sequences, times = self.head_points
        return tuple(_interpolate(sequences, times, float(count)) for count in range(TABLE_SEQUENCES + 1))

    def gemm_ms(self, tokens: int) -> float:
        """Matrix products of a pass with that many tokens."""
        if tokens < len(self.gemm):
            return self.gemm[tokens]
        return _interpolate(self.gemm_points[0], self.gemm_points[1], float(tokens))

    def head_ms(self, sequences: int) -> float:
        """Output head for that many sequences."""
        head = self.head
        if sequences < len(head):
            return head[sequences]
        return head[-1] + (head[-1] - head[-2]) * (sequences - len(head) + 1)

    def decode_fixed_ms(self, batch: int, padded: int | None = None) -> float:
        """Decode step without the part that grows with cached tokens (`kv_token_ms` each).

        `padded` is the batch that the kernels see when it is larger (captured CUDA graphs).
        """
        seen = batch if padded is None else padded
        kernels = self.gemm_ms(seen) + self.head_ms(seen) + self.decode_const_ms
        return self.host_ms + self.host_sequence_ms * batch + kernels

    def decode_ms(self, batch: int, kv_tokens: float, padded: int | None = None) -> float:
        """Decode step of `batch` sequences that have `kv_tokens` cached tokens together."""
        return self.decode_fixed_ms(batch, padded) + self.kv_token_ms * kv_tokens

    def prefill_ms(self, prompts: Iterable[int]) -> float:
        """A pass of whole prompts of these lengths and nothing else."""
        lengths = list(prompts)
        squares = float(sum(length * length for length in lengths))
        return self.step_ms(0, 0, sum(lengths), squares, len(lengths))

    def step_ms(
        self,
        decode_batch: int,
        kv_tokens: float,
        prefill_tokens: int = 0,
        prefill_squares: float = 0.0,
        prompts: int = 1,
    ) -> float:
        """A pass of decoding sequences and chunks of prompts.

        `prefill_squares` is the sum of (c + n)^2 - c^2 over chunks of n tokens after c cached ones.
        """
        if prefill_tokens <= 0:
            return self.decode_ms(decode_batch, kv_tokens)
        sequences = decode_batch + prompts
        time = self.host_ms + self.host_sequence_ms * sequences
        time += self.gemm_ms(decode_batch + prefill_tokens) + self.head_ms(sequences)
        if decode_batch:
            time += self.decode_const_ms + self.kv_token_ms * kv_tokens
        prompt = self.prefill_token_ms * prefill_tokens + self.prefill_square_ms * prefill_squares
        return time + self.prefill_const_ms + prompt

    def linear(self) -> LinearStep:
        """The straight lines nearest to this model. Needs no tables: planners ask for many models once."""
        fixed = self.host_ms + self.decode_const_ms
        const, slope = _least_squares(
            _FITTED_BATCHES,
            [
                fixed + self.host_sequence_ms * batch
                + _interpolate(*self.gemm_points, batch) + _interpolate(*self.head_points, batch)
                for batch in _FITTED_BATCHES
            ],
        )  # fmt: skip
        _, per_token = _least_squares(
            _FITTED_PROMPTS, [_interpolate(*self.gemm_points, _FITTED_DECODING + count) for count in _FITTED_PROMPTS]
        )
        return LinearStep(const, slope, self.kv_token_ms, per_token + self.prefill_token_ms, self.prefill_square_ms)


def step_time_model(
    model: ModelFacts | str,
    gpu: GpuFacts | str,
    quantization: str = "none",
    gpus: int = 1,
    kv_bytes_per_element: float = 2.0,
) -> StepTimeModel:
    """The model for a replica of `gpus` GPUs; `quantization` is a name of `trimtab.catalog.quantization`.

    Names are looked up in the bundled catalogue; LookupError when they are not there. Cached.
    """
    model_facts = load_catalogue().model(model) if isinstance(model, str) else model
    gpu_facts = load_catalogue().gpu(gpu) if isinstance(gpu, str) else gpu
    if model_facts is None:
        raise LookupError(f"the catalogue has no model {model}")
    if gpu_facts is None:
        raise LookupError(f"the catalogue has no GPU {gpu}")
    key = (model_facts.model_dump_json(), gpu_facts.model_dump_json())
    return _cached(key, quantization, gpus, kv_bytes_per_element)


@lru_cache(maxsize=512)
def _cached(key: tuple[str, str], quantization: str, gpus: int, kv_bytes: float) -> StepTimeModel:
    model, gpu = ModelFacts.model_validate_json(key[0]), GpuFacts.model_validate_json(key[1])
    return build_step_time_model(model, gpu, quantization, gpus, kv_bytes)


def build_step_time_model(
    model: ModelFacts, gpu: GpuFacts, quantization: str = "none", gpus: int = 1, kv_bytes_per_element: float = 2.0
) -> StepTimeModel:
    """As `step_time_model`, without its cache: for callers that look at each combination once."""
    slowdown = _SLOWDOWN.get(quantization, 1.0)
    wanted = _replica(model, gpu, gpus, "none" if slowdown > 1 else quantization)
    listed = _listed(wanted)
    entry = listed or _nearest(wanted)
    # 8-bit floats on weight-only kernels for 8-bit integers: the same bytes, but not the kernel that was measured.
    exact = listed is not None and not (quantization == "fp8" and wanted.format == INT8_WEIGHTS)
    replica = measured_replica(entry) if exact else wanted
    return _scaled(entry, replica, slowdown, kv_bytes_per_element, exact=exact)


def _replica(model: ModelFacts, gpu: GpuFacts, gpus: int, quantization: str) -> Replica:
    bytes_per_weight = weight_format(quantization, model.checkpoint).bytes_per_weight
    return Replica(model, count_parameters(model), gpu, gpus, kernel_format(model, gpu, quantization), bytes_per_weight)


def _shape(model: ModelFacts) -> tuple[object, ...]:
    return (
        model.num_layers, model.hidden_size, model.num_heads, model.num_kv_heads, model.head_dim,
        model.intermediate_size, model.vocab_size, model.experts, model.latent_attention,
    )  # fmt: skip


def _listed(wanted: Replica) -> Kernels | None:
    for entry in measurements().entries:
        if (entry.gpu, entry.gpus, entry.format) == (wanted.gpu.id, wanted.gpus, wanted.format) and _shape(
            measured_replica(entry).model
        ) == _shape(wanted.model):
            return entry
    return None


@dataclass(frozen=True, slots=True)
class _Reference:
    """A measured combination and where it lies, in logarithms of one GPU's bandwidth, compute and weights."""

    entry: Kernels
    bandwidth: float
    compute: float
    size: float


@lru_cache(maxsize=1)
def _references() -> tuple[_Reference, ...]:
    found = []
    for entry in measurements().entries:
        if not entry.estimate:
            found.append(_Reference(entry, *_place(measured_replica(entry))))
    return tuple(found)


def _place(replica: Replica) -> tuple[float, float, float]:
    return (
        math.log(replica.gpu.bandwidth_gb_s),
        math.log(replica.flops_16_bit / replica.gpus),
        math.log(replica.read_ms(1) * replica.bytes_per_ms / replica.gpus),
    )


def _nearest(wanted: Replica) -> Kernels:
    """The measured combination to scale from: same kernels before same sharding before like GPU and model."""
    kinds = (wanted.format, *INSTEAD.get(wanted.format, (PLAIN,)))
    bandwidth, compute, size = _place(wanted)
    sharded = wanted.gpus > 1

    def distance(have: _Reference) -> tuple[int, bool, float]:
        apart = abs(have.bandwidth - bandwidth) + abs(have.compute - compute) + abs(have.size - size) / 2
        return (kinds.index(have.entry.format), (have.entry.gpus > 1) != sharded, apart)

    return min((have for have in _references() if have.entry.format in kinds), key=distance).entry


def _scaled(entry: Kernels, wanted: Replica, slowdown: float, kv_bytes: float, *, exact: bool) -> StepTimeModel:
    data, have = measurements(), measured_replica(entry)
    points = _gemm_points(entry, have, wanted, slowdown)
    compute16 = have.flops_16_bit / wanted.flops_16_bit * wanted.width / have.width
    head = wanted.head_bytes / wanted.bytes_per_ms / (have.head_bytes / have.bytes_per_ms)
    layers = wanted.layers / have.layers
    exact = exact and slowdown == 1.0 and kv_bytes == 2.0
    sources = "; ".join(data.sources[name] for name in entry.sources)
    origin = f"{entry.model} {entry.format} on {entry.gpus}x{entry.gpu}"
    return StepTimeModel(
        gemm_points=points,
        head_points=(entry.head_sequences, tuple(head * time for time in entry.head_ms)),
        host_ms=data.host_ms,
        host_sequence_ms=data.host_sequence_ms,
        decode_const_ms=entry.decode_const_ms * layers,
        kv_token_ms=entry.decode_kv_token_ms * wanted.kv_ms / have.kv_ms * kv_bytes / 2.0,
        prefill_const_ms=entry.prefill_const_ms * layers,
        prefill_token_ms=entry.prefill_token_ms * compute16,
        prefill_square_ms=entry.prefill_square_ms * compute16,
        estimate=entry.estimate or not exact,
        source=f"{'measured' if exact and not entry.estimate else 'scaled from'} {origin}: {sources}",
    )


def _gemm_points(
    entry: Kernels, have: Replica, wanted: Replica, slowdown: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measured points moved along the roofline."""
    stretch = (have.compute_ms / have.read_ms(1)) / (wanted.compute_ms / wanted.read_ms(1))
    tokens = sorted({max(1.0, point * stretch) for point in entry.gemm_tokens} | set(entry.gemm_tokens))
    link_token, link_const = _pcie_ms(wanted)
    times = []
    correction = _plain_correction(entry, wanted)
    # Mixture of experts: larger passes read more experts, so that the ratio depends on the pass.
    alike = have.model.experts is None and wanted.model.experts is None
    ratio, local = wanted.read_ms(1) / have.read_ms(1), stretch
    for count in tokens:
        if not alike:
            ratio = wanted.read_ms(count) / have.read_ms(count)
            local = (have.compute_ms / have.read_ms(count)) / (wanted.compute_ms / wanted.read_ms(count))
        time = ratio * _interpolate(entry.gemm_tokens, entry.gemm_ms, count / local)
        if correction is not None:
            time *= _interpolate(*correction, count)
        times.append(slowdown * time + link_const + link_token * count)
    return tuple(tokens), tuple(times)


def _plain_correction(entry: Kernels, wanted: Replica) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """By how much scaling misses on the wanted GPU (or the nearest to it), where 16-bit kernels were measured on both.

    Weight-only formats compute in 16 bits, so they share what the roofline leaves out: the kernels' efficiency on that
    GPU, and all-reduces, which do not get faster with arithmetic. Without it they would seem to prefill faster than
    16-bit weights.
    """
    if entry.format not in (INT8_WEIGHTS, INT4_WEIGHTS) or entry.gpu == wanted.gpu.id:
        return None
    bandwidth, compute, _ = _place(wanted)
    alike = [
        (abs(have.bandwidth - bandwidth) + abs(have.compute - compute), have.entry.gpu)
        for have in _references()
        if (have.entry.model, have.entry.gpus, have.entry.format) == (entry.model, entry.gpus, PLAIN)
    ]
    nearest = min(alike)[1] if alike else entry.gpu
    return None if nearest == entry.gpu else _plain_misses(entry.model, entry.gpus, entry.gpu, nearest)


@lru_cache(maxsize=256)
def _plain_misses(model: str, gpus: int, here: str, there: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    plain = {
        entry.gpu: entry
        for entry in measurements().entries
        if (entry.model, entry.gpus, entry.format, entry.estimate) == (model, gpus, PLAIN, False)
    }
    if here not in plain or there not in plain:
        return None
    have, want = measured_replica(plain[here]), measured_replica(plain[there])
    ratio = want.read_ms(1) / have.read_ms(1)
    local = (have.compute_ms / have.read_ms(1)) / (want.compute_ms / want.read_ms(1))
    measured, scaled = plain[there], plain[here]
    misses = [
        time / (ratio * _interpolate(scaled.gemm_tokens, scaled.gemm_ms, count / local))
        for count, time in zip(measured.gemm_tokens, measured.gemm_ms, strict=True)
    ]
    # A flat end, so that the line is not continued beyond what was measured.
    return (*measured.gemm_tokens, measured.gemm_tokens[-1] * 2), (*misses, misses[-1])


def _pcie_ms(wanted: Replica) -> tuple[float, float]:
    """(a token, a pass) of all-reduces over PCIe; zero with a direct link or without shards."""
    if wanted.gpus == 1 or wanted.gpu.nvlink_gb_s > 0 or wanted.gpu.vendor != "nvidia":
        return 0.0, 0.0
    reduces = 2 * wanted.model.num_layers
    moved = 2.0 * wanted.model.hidden_size * 2 * (wanted.gpus - 1) / wanted.gpus
    return reduces * moved / _PCIE_BYTES_PER_MS, reduces * _PCIE_LATENCY_MS


def _interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Piecewise linear; constant before the first point, the last line beyond the last."""
    if x <= xs[0]:
        return ys[0]
    right = min(bisect_right(xs, x), len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _least_squares(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """(intercept, slope)."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return mean_y - slope * mean_x, slope

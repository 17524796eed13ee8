"""Applies the configured policy to requests whose prompt is longer than the window. Thin: counting, planning and
condensing are elsewhere."""

import json
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

from trimtab.sidecar.config import Context
from trimtab.sidecar.context.conversation import parse_conversation
from trimtab.sidecar.context.counting import Counter, CountError, EstimatingCounter, counts_images, prompts_of
from trimtab.sidecar.context.limits import HANDLED, WindowLimits, answer_tokens, surely_fits
from trimtab.sidecar.context.rewrite import Rewritten, condense, measure, slide, truncate
from trimtab.sidecar.context.summary import Summariser
from trimtab.sidecar.interfaces import Call, ContextDone, ContextRefused, EngineCall, Route

_INFO_RETRY = 10.0  # seconds between attempts to learn the limits from the engine
_ATTEMPTS = (
    3  # rewriting is planned with counts of single texts; the whole is counted again, and cut once more if needed
)


class WindowPolicy:
    """Implements `ContextPolicy`."""

    def __init__(self, config: Context, counter: Counter, engine: EngineCall) -> None:
        """`counter` falls back to an estimate where it fails; refusals need an exact count."""
        self._config = config
        self._counter = counter
        self._estimate = EstimatingCounter()
        self._engine = engine
        self._summariser = Summariser(engine, counter, config.summary_max_tokens)
        self._limits = _configured(config)
        self._next_info = 0.0
        self._counts = dict.fromkeys(("estimated", "uncounted", "unfittable"), 0)

    def unchanged(self, call: Call) -> bool:
        """See `ContextPolicy.unchanged`."""
        if call.route not in HANDLED:
            return True
        return self._limits is not None and surely_fits(call, self._limits.budget(answer_tokens(call)))

    async def apply(self, call: Call, scope: bytes) -> ContextDone | ContextRefused:
        """See `ContextPolicy.apply`. Where nothing can be counted or known the request goes to the engine as it is."""
        limits = await self._known_limits()
        if limits is None or call.route not in HANDLED:
            return ContextDone(call)
        answer = answer_tokens(call)
        budget = limits.budget(answer)
        if surely_fits(call, budget):
            return ContextDone(call)
        counter, total = await self._count(call)
        if total <= budget:
            return ContextDone(call)
        exact = counter.exact and not counts_images(call)
        if self._config.policy != "reject":
            done = await self._fit(call, scope, counter, total, limits, budget)
            if done is not None:
                how = "exact" if exact else "estimated"
                note = f"{done.note}; tokens={total}->{total - done.tokens_saved}; budget={budget}; counted={how}"
                return replace(done, note=note)
        if not exact:
            return ContextDone(call)  # the engine counts exactly and refuses with its own numbers
        self._counts["unfittable"] += 1
        return ContextRefused(
            f"the prompt has {total} tokens, {total - budget} more than fit ({limits.describe(answer)});"
            f" context policy {self._config.policy}"
        )

    async def _count(self, call: Call) -> tuple[Counter, int]:
        try:
            return self._counter, await self._counter.total(call)
        except CountError:
            self._counts["estimated"] += 1
            return self._estimate, await self._estimate.total(call)

    async def _fit(
        self, call: Call, scope: bytes, counter: Counter, total: int, limits: WindowLimits, budget: int
    ) -> ContextDone | None:
        """The request cut to `budget`, or None when the policy cannot do it."""
        target = budget
        for _ in range(_ATTEMPTS):
            try:
                changed = await self._rewrite(call, scope, counter, total, limits, target)
                if changed is None:
                    return None
                now = await counter.total(changed.call)
            except CountError:
                self._counts["uncounted"] += 1
                return None
            if now <= budget:
                return replace(changed, tokens_saved=max(0, total - now))
            target -= now - budget
        return None

    async def _rewrite(
        self, call: Call, scope: bytes, counter: Counter, total: int, limits: WindowLimits, target: int
    ) -> ContextDone | None:
        if call.route is not Route.CHAT:
            return await self._cut_prompts(call, counter, target)
        conversation = parse_conversation(call.body.get("messages"))
        if conversation is None:
            return None
        config = self._config
        plan = await measure(
            conversation, total, counter, budget=target, low_water=config.low_water, keep_last=config.keep_last_turns
        )
        model = call.body.get("model")
        rewritten: Rewritten | None
        if config.policy == "truncate":
            rewritten = await truncate(plan, counter)
        elif config.policy == "slidingWindow":
            rewritten = slide(plan)
        else:
            rewritten = await condense(
                plan,
                self._summariser,
                hierarchical=config.policy == "hierarchical",
                scope=scope,
                model=model if type(model) is str else None,
                prompt_room=limits.budget(config.summary_max_tokens),
            )
        return None if rewritten is None else _changed(call, {"messages": rewritten.messages}, rewritten.note)

    async def _cut_prompts(self, call: Call, counter: Counter, target: int) -> ContextDone | None:
        """Raw prompts have no turns: truncation and the sliding window keep their ends, the others cannot help."""
        prompts = prompts_of(call)
        if prompts is None or self._config.policy not in ("truncate", "slidingWindow"):
            return None
        kept = [await counter.tail(text, target - 1) for text in prompts]  # one for a token the tokenizer puts first
        field = "prompt" if call.route is Route.COMPLETIONS else "inputs"
        value: Any = kept if type(call.body.get(field)) is list else kept[0]
        return _changed(call, {field: value}, f"{self._config.policy}; kept=end")

    async def _known_limits(self) -> WindowLimits | None:
        """The configured limits, completed by the engine's own; None while the engine does not tell."""
        if self._limits is None and monotonic() >= self._next_info:
            self._next_info = monotonic() + _INFO_RETRY
            try:
                status, answer = await self._engine("/info", b"")
                info = json.loads(answer) if status == 200 else None
            except (OSError, TimeoutError, ValueError):
                info = None
            self._limits = _completed(self._config, info)
        return self._limits

    def metrics(self) -> Mapping[str, float]:
        """See `ContextPolicy.metrics`."""
        made = self._summariser
        counts = {
            **self._counts,
            "summaries": made.made,
            "summaries_reused": made.reused,
            "summaries_failed": made.failed,
        }
        return {f"trimtab_context_{name}_total": float(count) for name, count in counts.items()}


def _configured(config: Context) -> WindowLimits | None:
    if config.max_input_tokens is None or config.max_total_tokens is None:
        return None
    return WindowLimits(config.max_input_tokens, config.max_total_tokens)


def _completed(config: Context, info: Any) -> WindowLimits | None:
    if not isinstance(info, dict):
        return None
    longest, total = info.get("max_input_tokens"), info.get("max_total_tokens")
    if type(longest) is not int or type(total) is not int or longest < 1 or total < 1:
        return None
    return WindowLimits(min(config.max_input_tokens or longest, longest), min(config.max_total_tokens or total, total))


def _changed(call: Call, fields: dict[str, Any], note: str) -> ContextDone | None:
    """`call` with other fields; None when its body holds what cannot be written back unchanged."""
    body = {**call.body, **fields}
    try:
        raw = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:  # an infinity: the engine refuses it
        return None
    return ContextDone(Call(call.route, raw, body, call.stream, call.units), note)

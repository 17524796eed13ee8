"""What the pretended model will say, and where it will stop."""

import json
import os
from dataclasses import dataclass

from trimtab.simulation.server.parameters import Generation
from trimtab.simulation.server.text import Answer, answer_seed, json_example, pieces, stop_position

LONGEST_SCAN = 8192
"""Tokens within which stop strings are looked for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An answer decided before it begins."""

    state: bytes
    fixed: tuple[str, ...]
    stop_after: int | None
    """Tokens after which it ends by itself; None: at its length limit."""
    reason: str
    """Why it then ends: `eos_token` or `stop_sequence`."""
    seed: int | None
    """Reported to the client; None for greedy answers."""

    def answer(self) -> Answer:
        """The tokens from the beginning."""
        return Answer(self.state, self.fixed)


def plan_answer(request: Generation, identity: str, *, draw_eos: bool) -> Plan:
    """Decide an answer; `identity` tells model and number format, which change answers too.

    Greedy and seeded requests always get the same answer, sampled ones without a seed a new one each time.
    """
    seed = request.seed
    if seed is None and request.sampled:
        seed = int.from_bytes(os.urandom(8), "little")
    decisive = {"parameters": dict(request.decisive), "seed": seed if request.sampled else None, "model": identity}
    state = answer_seed("".join(request.parts), decisive)
    fixed = _fixed(request, state)
    stop_after, reason = None, "eos_token"
    if fixed:
        stop_after = len(fixed) + 1
    elif draw_eos:
        stop_after = 1 + int.from_bytes(state[8:12], "little") % max(1, request.max_new_tokens)
    if request.stops:
        found = stop_position(Answer(state, fixed), request.stops, min(request.max_new_tokens, LONGEST_SCAN))
        if found is not None and (stop_after is None or found < stop_after):
            stop_after, reason = found, "stop_sequence"
    if stop_after is not None and stop_after > request.max_new_tokens:
        stop_after = None
    return Plan(state, fixed, stop_after, reason, seed if request.sampled else None)


def _fixed(request: Generation, state: bytes) -> tuple[str, ...]:
    """Tokens of a JSON answer where the grammar asks for one; regular expressions are not followed."""
    if request.grammar is None or "json" not in request.grammar:
        return ()
    return tuple(pieces(json.dumps(json_example(request.grammar["json"], Answer(state)))))

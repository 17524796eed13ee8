"""Which requests may be answered from the cache.

By default only those whose answer the engine computes deterministically: greedy decoding, or sampling from a seed the
client chose. Batching makes even greedy decoding vary in the last bits of its logits; a cached answer is one valid
answer of the engine.

Rules of TGI 3.3.7 (router/src/lib.rs, validation.rs; server/text_generation_server/utils/tokens.py):

- native: absent `parameters` means `do_sample: true`, an empty object means `do_sample: false`; a temperature, top_k,
  top_p or typical_p turns sampling on by itself.
- OpenAI: only `temperature` of exactly 0 switches `do_sample` off; absent or any other value samples. top_p still turns
  sampling on.
"""

from typing import Any

from trimtab.sidecar.interfaces import Call, Route

CACHED_ROUTES = frozenset({Route.COMPAT, Route.GENERATE, Route.GENERATE_STREAM, Route.CHAT, Route.COMPLETIONS})
_NATIVE_WARPERS = ("temperature", "top_k", "top_p", "typical_p")
_OPENAI_WARPERS = ("top_k", "top_p", "typical_p")
_MAX_SEED = 2**64 - 1


def refusal(call: Call, *, store_sampled: bool) -> str | None:
    """Why this request is not cached, as a token, or None. `store_sampled`: sampled answers are wanted too."""
    if call.route not in CACHED_ROUTES:
        return "route"
    if call.route is Route.CHAT and _remote_image(call.body.get("messages")):
        return "remote-image"
    if store_sampled or is_deterministic(call):
        return None
    return "sampling"


def is_deterministic(call: Call) -> bool:
    """Whether the engine gives the same answer to this request each time: greedy, or sampling from a given seed."""
    body = call.body
    if call.route.openai:
        return _seeded(body) or (_is_zero(body.get("temperature")) and not _any(body, _OPENAI_WARPERS))
    parameters = body.get("parameters")
    if type(parameters) is not dict:
        return False
    if _seeded(parameters):
        return True
    return parameters.get("do_sample", False) is False and not _any(parameters, _NATIVE_WARPERS)


def fetches_image(canonical: bytes) -> bool:
    """Whether a prompt embeds an image by link (`![](http…`), which the router of a vision model would download.

    `canonical` is the canonical JSON of the body, in which nothing but quotes, backslashes and control characters is
    escaped.
    """
    start = canonical.find(b"![](")
    while start >= 0:
        if not canonical.startswith(b"data:", start + 4):
            return True
        start = canonical.find(b"![](", start + 4)
    return False


def _seeded(parameters: dict[str, Any]) -> bool:
    seed = parameters.get("seed")
    return type(seed) is int and 0 <= seed <= _MAX_SEED


def _is_zero(value: Any) -> bool:
    return (type(value) is int or type(value) is float) and value == 0


def _any(parameters: dict[str, Any], names: tuple[str, ...]) -> bool:
    return any(parameters.get(name) is not None for name in names)


def _remote_image(messages: Any) -> bool:
    """Whether a message brings an image by URL: what lies behind it may change."""
    if type(messages) is not list:
        return False
    for message in messages:
        content = message.get("content") if type(message) is dict else None
        if type(content) is list and any(_is_remote(chunk) for chunk in content):
            return True
    return False


def _is_remote(chunk: Any) -> bool:
    if type(chunk) is not dict or "image_url" not in chunk:
        return False
    image = chunk["image_url"]
    url = image.get("url") if type(image) is dict else image
    return not (type(url) is str and url.startswith("data:"))

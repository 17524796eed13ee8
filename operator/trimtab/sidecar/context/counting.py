"""Tokens: by the model's own tokenizer where it is mounted, by the engine's, or estimated."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from trimtab.sidecar.context.conversation import has_images, text_of
from trimtab.sidecar.context.template import ChatTemplate, TemplateFailedError, load_template
from trimtab.sidecar.interfaces import Call, EngineCall, Route

BYTES_PER_TOKEN = 3
"""Of an estimate. English text has about four bytes a token in current vocabularies, code and Chinese about three: the
estimate errs on the long side."""
_TEMPLATE_TOKENS = 8  # a message, in an estimate
_INLINE_BYTES = 16_000  # up to which counting stays on the event loop (some milliseconds)
_MEMO_ENTRIES = 8192


class CountError(Exception):
    """The tokens cannot be counted: no valid prompt, or the engine does not answer."""


class Counter(Protocol):
    """Counts tokens. All methods raise CountError."""

    exact: bool
    """False: numbers are estimates, and nothing may be refused because of them."""

    async def total(self, call: Call) -> int:
        """Tokens of the whole prompt as the engine sees it; of several prompts the longest."""

    async def texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text on its own."""

    async def tail(self, text: str, tokens: int) -> str:
        """The end of `text` that has at most `tokens` tokens."""


def prompts_of(call: Call) -> list[str] | None:
    """The raw prompts of a request without chat template; None when there is none of a known kind."""
    prompt = call.body.get("prompt" if call.route is Route.COMPLETIONS else "inputs")
    prompts = prompt if type(prompt) is list else [prompt]
    texts = [text for text in prompts if isinstance(text, str)]
    return texts if texts and len(texts) == len(prompts) else None


def _truncated(call: Call, tokens: int) -> int:
    """The engine's own `truncate` parameter bounds the prompt."""
    parameters = call.body.get("parameters")
    bound = parameters.get("truncate") if type(parameters) is dict else None
    return min(tokens, bound) if type(bound) is int and bound > 0 else tokens


class EstimatingCounter:
    """From the number of bytes; never fails."""

    exact = False

    async def total(self, call: Call) -> int:
        """See Counter."""
        messages = call.body.get("messages") if call.route is Route.CHAT else None
        if type(messages) is list:
            texts = [text_of(message) for message in messages if type(message) is dict]
            tools = call.body.get("tools")
            extra = _estimate(json.dumps(tools, ensure_ascii=False)) if tools else 0
            return sum(_estimate(text) + _TEMPLATE_TOKENS for text in texts) + extra
        return _truncated(call, max((_estimate(text) for text in prompts_of(call) or [""]), default=0))

    async def texts(self, texts: Sequence[str]) -> list[int]:
        """See Counter."""
        return [_estimate(text) for text in texts]

    async def tail(self, text: str, tokens: int) -> str:
        """See Counter."""
        kept = text.encode("utf-8", "surrogatepass")[-max(tokens, 0) * BYTES_PER_TOKEN :] if tokens > 0 else b""
        return kept.decode("utf-8", "ignore")


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


class LocalCounter:
    """The model's tokenizer.json and chat template, from a mounted folder."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        """Without a template, chat prompts are estimated from their texts, and `exact` is False."""
        self._tokenizer = tokenizer
        self._template = template
        self.exact = template is not None
        self._memo: OrderedDict[bytes, int] = OrderedDict()

    async def total(self, call: Call) -> int:
        """See Counter."""
        if call.route is not Route.CHAT:
            prompts = prompts_of(call)
            if prompts is None:
                raise CountError("no prompt")
            return _truncated(call, max(await self._counts(prompts, special=True)))
        messages = call.body.get("messages")
        if type(messages) is not list or not all(type(message) is dict for message in messages):
            raise CountError("no messages")
        if self._template is None:
            counts = await self.texts([text_of(message) for message in messages])
            return sum(counts) + _TEMPLATE_TOKENS * len(counts)
        try:
            text = self._template.render(messages, call.body.get("tools"))
        except TemplateFailedError as error:
            raise CountError(str(error)) from error
        return (await self._counts([text], special=False))[0]

    async def texts(self, texts: Sequence[str]) -> list[int]:
        """See Counter. Counts are remembered by the texts' hashes: a conversation comes again with each turn."""
        keys = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
        missing = [place for place, key in enumerate(keys) if key not in self._memo]
        fresh = dict(zip(missing, await self._counts([texts[place] for place in missing], special=False), strict=True))
        counts = [fresh[place] if place in fresh else self._memo[key] for place, key in enumerate(keys)]
        for key, count in zip(keys, counts, strict=True):
            self._memo[key] = count
            self._memo.move_to_end(key)
        while len(self._memo) > _MEMO_ENTRIES:
            self._memo.popitem(last=False)
        return counts

    async def _counts(self, texts: Sequence[str], *, special: bool) -> list[int]:
        def count() -> list[int]:
            return [len(one) for one in self._tokenizer.encode_batch(list(texts), add_special_tokens=special)]

        if sum(map(len, texts)) <= _INLINE_BYTES:
            return count()
        return await asyncio.to_thread(count)

    async def tail(self, text: str, tokens: int) -> str:
        """See Counter."""
        if tokens <= 0:
            return ""
        encoding = await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=False)
        if len(encoding) <= tokens:
            return text
        start: int = encoding.offsets[-tokens][0]
        return text[start:]


class EngineCounter:
    """Asks the engine: `/chat_tokenize` and `/tokenize` of TGI. Exact, at the price of a round trip."""

    exact = True

    def __init__(self, engine: EngineCall) -> None:
        self._engine = engine

    async def _tokens(self, path: str, body: Any) -> list[Any]:
        try:
            status, answer = await self._engine(path, json.dumps(body, ensure_ascii=False).encode())
            found = json.loads(answer) if status == 200 else None
        except (OSError, TimeoutError, ValueError) as error:
            raise CountError(f"{path}: {type(error).__name__}") from error
        if isinstance(found, dict):
            found = found.get("tokenize_response")
        if not isinstance(found, list):
            raise CountError(f"{path} answered {status}")
        return found

    async def total(self, call: Call) -> int:
        """See Counter."""
        if call.route is Route.CHAT:
            return len(await self._tokens("/chat_tokenize", {**call.body, "stream": False}))
        prompts = prompts_of(call)
        if prompts is None:
            raise CountError("no prompt")
        return _truncated(call, max(await self.texts(prompts)))

    async def texts(self, texts: Sequence[str]) -> list[int]:
        """See Counter."""
        return [len(await self._tokens("/tokenize", {"inputs": text})) if text else 0 for text in texts]

    async def tail(self, text: str, tokens: int) -> str:
        """See Counter."""
        found = await self._tokens("/tokenize", {"inputs": text}) if text and tokens > 0 else []
        if len(found) <= tokens:
            return text if found else ""
        start = found[-tokens].get("start") if isinstance(found[-tokens], dict) else None
        if type(start) is not int:
            raise CountError("/tokenize gave no offsets")
        return text[start:]


def counts_images(call: Call) -> bool:
    """Whether a request holds images, whose tokens no counter here knows."""
    messages = call.body.get("messages")
    return type(messages) is list and has_images([message for message in messages if type(message) is dict])


def load_counter(path: Path, now: type[datetime] = datetime) -> LocalCounter:
    """From a tokenizer.json or the folder that holds one. Raises OSError or ValueError."""
    folder = path if path.is_dir() else path.parent
    file = folder / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file.name}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return LocalCounter(tokenizer, load_template(folder, now=now.now))

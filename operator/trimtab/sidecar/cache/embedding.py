"""Texts to unit vectors: a static embedding model in this process, or a server."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trimtab.sidecar.interfaces import EngineCall

Vectors = npt.NDArray[np.float32]
_TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8, "I64": np.int64, "I32": np.int32}
_MAX_TOKENS = 512
_BATCH_WINDOW = 0.001  # seconds in which requests to a server gather
_MAX_BATCH = 32


class EmbeddingError(Exception):
    """No vectors: the server fails, or the model's files are not understood."""


class Embedder(Protocol):
    """Turns texts into rows of a matrix, each of length 1 (or all zero where a text has no known token)."""

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One row a text. Raises EmbeddingError or OSError."""

    async def close(self) -> None:
        """Let go of connections."""


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a safetensors file. Raises EmbeddingError, OSError.

    Format: 8 bytes little-endian length of a JSON header, the header, raw little-endian data.
    """
    data = path.read_bytes()
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        tensors = {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            begin, end = about["data_offsets"]
            flat = np.frombuffer(
                data[start + begin : start + end], dtype=np.dtype(_TYPES[about["dtype"]]).newbyteorder("<")
            )
            tensors[name] = flat.reshape(about["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EmbeddingError(f"{path.name}: {error}") from error
    return tensors


def normalised(vectors: npt.NDArray[Any]) -> Vectors:
    """Rows scaled to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors, dtype=np.float32), where=lengths > 0)
    return scaled


class StaticEmbedder:
    """A static model in the layout of model2vec: `model.safetensors` with `embeddings` (tokens x dimensions),
    optionally `weights` and `mapping`, and `tokenizer.json`. A text is the weighted mean of its tokens' vectors."""

    def __init__(self, folder: Path) -> None:
        """Raises EmbeddingError, OSError."""
        tensors = read_safetensors(folder / "model.safetensors")
        table = tensors.get("embeddings")
        if table is None or table.ndim != 2:
            raise EmbeddingError("model.safetensors has no matrix `embeddings`")
        self._table: Vectors = table.astype(np.float32)
        mapping, weights = tensors.get("mapping"), tensors.get("weights")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise EmbeddingError(f"tokenizer.json: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        size = self._tokenizer.get_vocab_size()
        self._rows = np.arange(size) if mapping is None else mapping.astype(np.int64)
        self._weights = np.ones(size, np.float32) if weights is None else weights.astype(np.float32)
        if len(self._rows) < size or len(self._weights) < size or int(self._rows.max(initial=0)) >= len(self._table):
            raise EmbeddingError("tokenizer.json and model.safetensors do not belong together")

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder. Some tens of microseconds a short text: done on the event loop."""
        out = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for row, text in enumerate(texts):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if ids:
                out[row] = (self._table[self._rows[ids]] * self._weights[ids, None]).mean(axis=0)
        return normalised(out)

    async def close(self) -> None:
        """See Embedder."""


class ServerEmbedder:
    """OpenAI's `/v1/embeddings`, which Text Embeddings Inference speaks too. Requests of a moment travel together."""

    def __init__(
        self,
        call: EngineCall,
        *,
        path: str = "/v1/embeddings",
        model: str = "",
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`call` posts to the embedding server."""
        self._call = call
        self._on_close = on_close
        self._path = path
        self._model = model
        self._waiting: list[tuple[str, asyncio.Future[Vectors]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in texts]
        if not self._waiting:
            task = loop.create_task(self._depart())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._waiting += zip(texts, futures, strict=True)
        return np.stack([await future for future in futures]) if futures else np.zeros((0, 0), np.float32)

    async def close(self) -> None:
        """See Embedder."""
        for task in list(self._tasks):
            task.cancel()
        if self._on_close is not None:
            await self._on_close()

    async def _depart(self) -> None:
        await asyncio.sleep(_BATCH_WINDOW)
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), _MAX_BATCH):
            batch = [(text, future) for text, future in waiting[start : start + _MAX_BATCH] if not future.done()]
            try:
                rows = await self._ask([text for text, _ in batch]) if batch else []
                for (_, future), row in zip(batch, rows, strict=True):
                    if not future.done():
                        future.set_result(row)
            except (EmbeddingError, OSError, TimeoutError) as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(EmbeddingError(str(error)))

    async def _ask(self, texts: list[str]) -> list[Vectors]:
        body = {"input": texts, "model": self._model, "encoding_format": "float"}
        status, answer = await self._call(self._path, json.dumps(body).encode())
        if status != 200:
            raise EmbeddingError(f"the embedding server answered {status}")
        try:
            data = sorted(json.loads(answer)["data"], key=lambda item: item["index"])
            matrix = np.array([item["embedding"] for item in data], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddingError("the embedding server's answer is not understood") from error
        if matrix.ndim != 2 or len(matrix) != len(texts) or not np.isfinite(matrix).all():
            raise EmbeddingError("the embedding server's answer has the wrong shape")
        return list(normalised(matrix))

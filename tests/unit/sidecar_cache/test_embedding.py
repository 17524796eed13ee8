import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from trimtab.sidecar.cache.embedding import EmbeddingError, ServerEmbedder, StaticEmbedder, read_safetensors

WORDS = ["[UNK]", "cat", "dog", "eats", "zero"]


def write_safetensors(path: Path, tensors: dict[str, Any]) -> None:
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "int8": "I8"}
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        header[name] = {
            "dtype": names[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def static_model(folder: Path, **tensors: Any) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 2], [0, 0, 0]], np.float32)
    write_safetensors(folder / "model.safetensors", {"embeddings": table, **tensors})
    return folder


async def test_a_text_is_the_normalised_mean_of_its_tokens(tmp_path: Path) -> None:
    vectors = await StaticEmbedder(static_model(tmp_path)).embed(["cat eats", "cat dog", "zero", ""])
    assert vectors == pytest.approx(
        np.array([[1, 0, 2], [1, 1, 0], [0, 0, 0], [0, 0, 0]]) / np.array([[5**0.5], [2**0.5], [1], [1]])
    )


async def test_weights_and_mapping_are_followed(tmp_path: Path) -> None:
    mapping = np.array([0, 2, 2, 3, 4], np.int64)  # cat and dog share a row
    weights = np.array([1, 1, 1, 0, 1], np.float32)  # eats counts nothing
    embedder = StaticEmbedder(static_model(tmp_path, mapping=mapping, weights=weights))
    assert await embedder.embed(["cat eats", "dog"]) == pytest.approx(np.array([[0, 1, 0], [0, 1, 0]]))


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
async def test_smaller_types_are_read(tmp_path: Path, dtype: Any) -> None:
    embedder = StaticEmbedder(static_model(tmp_path, embeddings=np.eye(5, dtype=dtype)))
    assert (await embedder.embed(["dog"]))[0].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({"embeddings": np.zeros(3, np.float32)}, id="no matrix"),
        pytest.param({"weights": np.ones(2, np.float32)}, id="too few weights"),
        pytest.param({"mapping": np.array([0, 1, 2, 3, 9], np.int64)}, id="mapping beyond the table"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(EmbeddingError):
        StaticEmbedder(static_model(tmp_path, **tensors))


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"{}x", b"\x07" + b"\0" * 7 + b'{"a":1}'])
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes) -> None:
    static_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(EmbeddingError):
        StaticEmbedder(tmp_path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="model"):
        read_safetensors(tmp_path / "model.safetensors")


class Server:
    """OpenAI's embeddings: the vector of a text is its length and 1."""

    def __init__(self, answer: Any = None, status: int = 200) -> None:
        self.batches: list[Sequence[str]] = []
        self.answer, self.status = answer, status

    async def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert path == "/v1/embeddings"
        texts = json.loads(body)["input"]
        self.batches.append(texts)
        data = [{"index": n, "embedding": [len(text), 1]} for n, text in enumerate(texts)]
        return self.status, json.dumps(self.answer if self.answer is not None else {"data": data[::-1]}).encode()


async def test_requests_of_a_moment_travel_together() -> None:
    server = Server()
    embedder = ServerEmbedder(server)
    vectors = await asyncio.gather(*(embedder.embed(["x" * n]) for n in range(40)))
    assert [round(float(v[0][0] / v[0][1])) for v in vectors] == list(range(40))
    assert [len(batch) for batch in server.batches] == [32, 8]
    assert np.linalg.norm(vectors[7][0]) == pytest.approx(1)


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(Server(status=500), id="status"),
        pytest.param(Server({"data": []}), id="too few"),
        pytest.param(Server({"data": [{"index": 0, "embedding": "x"}]}), id="no vector"),
        pytest.param(Server({"data": [{"index": 0, "embedding": [1e999]}]}), id="infinite"),
        pytest.param(Server([]), id="another shape"),
    ],
)
async def test_answers_that_are_no_vectors_are_errors(server: Server) -> None:
    with pytest.raises(EmbeddingError):
        await ServerEmbedder(server).embed(["a"])


async def test_one_who_leaves_does_not_hold_up_the_others() -> None:
    embedder = ServerEmbedder(Server())
    one, two = (asyncio.ensure_future(embedder.embed([text])) for text in ("a", "bb"))
    await asyncio.sleep(0)
    one.cancel()
    assert (await two).shape == (1, 2)
    await embedder.close()

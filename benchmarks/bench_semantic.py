"""How often would the semantic cache give a wrong answer? Measures thresholds on labelled pairs of prompts.

    python benchmarks/bench_semantic.py --model FOLDER | --endpoint URL [--pairs FILE] [--bound 0.02]

A line of FILE is JSON: {"a": prompt, "b": prompt, "same": whether one answer is right for both}; also CSV or TSV with
the columns question1, question2, is_duplicate (Quora Question Pairs) or sentence1, sentence2, label (PAWS). FOLDER
holds a static model (model.safetensors, tokenizer.json), URL is an embedding server. The default pairs are 42
hand-written ones: a check that the guard holds, much too few to set a threshold by. Without a model a lexical baseline
(hashed character n-grams) is measured, which shows why words alone do not do.
"""

import argparse
import asyncio
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from trimtab.sidecar.cache.embedding import Embedder, ServerEmbedder, StaticEmbedder, Vectors, normalised
from trimtab.sidecar.cache.false_hits import Outcome, Pair, judge, lowest_safe_threshold
from trimtab.sidecar.cache.guard import fingerprint, same_words_in_another_order
from trimtab.sidecar.config import Engine
from trimtab.sidecar.sidecall import ServerCaller

OWN_PAIRS = Path(__file__).parent / "semantic_pairs.jsonl"
COLUMNS = (("question1", "question2", "is_duplicate"), ("sentence1", "sentence2", "label"), ("a", "b", "same"))
CHUNK = 256


class Lexical:
    """Hashed character trigrams."""

    async def embed(self, texts: Sequence[str]) -> Vectors:
        out = np.zeros((len(texts), 1024), np.float32)
        for row, text in enumerate(texts):
            padded = f"  {text.lower()}  "
            for place in range(len(padded) - 2):
                out[row, crc32(padded[place : place + 3].encode()) % 1024] += 1
        return normalised(out)

    async def close(self) -> None:
        """Nothing to close."""


def read_pairs(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(prompt, prompt, same) of each line."""
    if path.suffix == ".jsonl":
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            yield row["a"], row["b"], bool(row["same"])
        return
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ","):
            names = next(columns for columns in COLUMNS if set(columns) <= set(row))
            yield row[names[0]], row[names[1]], row[names[2]].strip().lower() in ("1", "true")


async def measure(rows: Sequence[tuple[str, str, bool]], embedder: Embedder) -> list[Pair]:
    """Similarity and guard of each pair."""
    pairs = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        one = await embedder.embed([a for a, _, _ in chunk])
        two = await embedder.embed([b for _, b, _ in chunk])
        for (a, b, same), similarity in zip(chunk, (one * two).sum(axis=1), strict=True):
            comparable = fingerprint(a) == fingerprint(b) and not same_words_in_another_order(a, b)
            pairs.append(Pair(float(similarity), same, comparable))
    return pairs


def line(outcome: Outcome) -> str:
    wrong = f"{outcome.false_hits}/{outcome.hits}"
    return f"{outcome.hit_rate:7.1%} {wrong:>11} {outcome.false_share:7.1%} {outcome.false_bound:8.1%}"


async def run(options: argparse.Namespace) -> int:
    rows = list(read_pairs(options.pairs))
    embedder: Embedder = Lexical()
    if options.model is not None:
        embedder = StaticEmbedder(options.model)
    elif options.endpoint is not None:
        caller = ServerCaller(options.endpoint, Engine())
        embedder = ServerEmbedder(caller, on_close=caller.close)
    else:
        print("no model given: lexical baseline\n")
    try:
        pairs = await measure(rows, embedder)
    finally:
        await embedder.close()
    same = sum(pair.same for pair in pairs)
    kept = sum(pair.comparable for pair in pairs if pair.same)
    passed = sum(pair.comparable for pair in pairs if not pair.same)
    print(
        f"{len(pairs)} pairs, {same} paraphrases; the guard lets {kept} paraphrases and {passed} others be compared\n"
    )
    head = f"{'hits':>7} {'false':>11} {'share':>7} {'<= (95%)':>8}"
    print(f"threshold   {'guarded':^36}   {'without guard':^36}\n            {head}   {head}")
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98):
        print(f"{threshold:9.2f}   {line(judge(pairs, threshold))}   {line(judge(pairs, threshold, guarded=False))}")
    for guarded in (True, False):
        best = lowest_safe_threshold(pairs, options.bound, guarded=guarded)
        what = "guarded" if guarded else "without guard"
        if best is None:
            print(
                f"\n{what}: no threshold keeps false hits below {options.bound:.1%} with 95 % confidence on these pairs"
            )
        else:
            print(f"\n{what}: threshold {best.threshold:.4f} keeps the bound of {options.bound:.1%}: {line(best)}")
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--endpoint")
    parser.add_argument("--pairs", type=Path, default=OWN_PAIRS)
    parser.add_argument("--bound", type=float, default=0.02)
    return asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

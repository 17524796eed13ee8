import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.replay import registry
from trimtab.replay.readers import TraceFormatError, read_lengths, read_requests
from trimtab.replay.registry import Places, Selection, TraceNotFoundError, find_lengths, find_trace, profiles
from trimtab.replay.statistics import measure
from trimtab.replay.synthesis import profile_of
from trimtab.replay.trace import Source

REQUEST_TRACES = [name for name, entry in profiles().items() if "requests" in entry]
HERE = Source("memory", "test")
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
"""


@pytest.fixture(autouse=True)
def _no_ambient_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRIMTAB_TRACES", raising=False)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def test_reads_azures_own_layout() -> None:
    trace = read_requests(AZURE, "x", HERE)
    assert trace.arrival_s.tolist() == pytest.approx([0, 0.052])
    assert trace.input_tokens.tolist() == [4808, 3180]


def test_reads_mooncakes_own_layout_and_tells_equal_prompts() -> None:
    lines = [
        {"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 2000, "input_length": 600, "output_length": 6, "hash_ids": [1, 2]},
        {"timestamp": 3500, "input_length": 700, "output_length": 7, "hash_ids": [1, 3]},
    ]
    trace = read_requests("\n".join(map(json.dumps, lines)) + "\n", "x", HERE)
    assert trace.arrival_s.tolist() == [0, 1, 2.5]
    assert trace.prompt_key.tolist() == [0, 0, 1]
    assert trace.prefix_blocks == ((1, 2), (1, 2), (1, 3))


def test_reads_several_requests_of_one_timestamp() -> None:
    line = {
        "timestamp": 0,
        "requests": [{"prompt_length": 3, "output_length": 4}, {"prompt_length": 5, "output_length": 6}],
    }
    trace = read_requests(json.dumps(line) + "\n", "x", HERE)
    assert trace.input_tokens.tolist() == [3, 5]


def test_a_line_without_lengths_is_named() -> None:
    with pytest.raises(TraceFormatError, match=r"line 1 lacks 'output_length'"):
        read_requests('{"timestamp": 0}\n', "x", HERE)


def test_an_unknown_header_is_refused_with_what_was_expected() -> None:
    with pytest.raises(TraceFormatError, match="expected t_s,in_tokens,out_tokens"):
        read_requests("a,b,c\n1,2,3\n", "x", HERE)


def test_arrivals_on_a_grid_of_three_seconds_are_spread_over_it() -> None:
    rows = "\n".join(f"{3 * (i // 4)}.0,10,10" for i in range(400))
    trace = read_requests(f"t_s,in_tokens,out_tokens\n{rows}\n", "x", HERE, seed=1)
    assert len(np.unique(trace.arrival_s)) == 400
    assert measure(trace).cv < 1.3


def test_a_path_wins_over_names_and_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(b"t_s,in_tokens,out_tokens\n0,1,2\n5,3,4\n"))
    trace = find_trace(str(path))
    assert (trace.source.origin, trace.name, len(trace)) == ("path", "mine", 2)


def test_a_folder_wins_over_the_network(tmp_path: Path) -> None:
    (tmp_path / "azure2023_conv.csv").write_text("t_s,in_tokens,out_tokens\n0,1,2\n5,3,4\n")
    trace = find_trace("azure-2023-conv", places=Places(tmp_path))
    assert trace.source.origin == "folder"
    assert len(trace) == 2


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TraceNotFoundError, match="azure-2023-code"):
        find_trace("nope")


@pytest.mark.parametrize("name", sorted(profiles()))
def test_offline_every_known_trace_is_generated_with_its_published_statistics(name: str) -> None:
    entry = profiles()[name]
    selection = Selection(rate=None if "requests" in entry else 8.0, duration_s=None if "requests" in entry else 86_400)
    trace = find_trace(name, selection, Places(download=False))
    found = measure(trace)
    assert trace.source.origin == "generated"
    assert any("generated from published statistics" in note for note in trace.source.notes)
    assert found.rate == pytest.approx(selection.rate or entry["rate"], rel=0.03)
    assert found.cv == pytest.approx(entry["cv"], rel=0.15)
    assert found.repeat_ratio == pytest.approx(entry.get("repeat_ratio", 0.0), abs=0.01)
    if "requests" in entry:
        assert found.input_tokens.mean == pytest.approx(entry["input_tokens"]["mean"], rel=0.05)
        assert found.output_tokens.mean == pytest.approx(entry["output_tokens"]["mean"], rel=0.2)
        assert found.minute_dispersion == pytest.approx(entry["minute_dispersion"], rel=0.3, abs=1)


def test_generation_is_reproducible_by_seed() -> None:
    offline = Places(download=False)
    one, same, other = (find_trace("azure-2023-conv", Selection(seed=s), offline) for s in (1, 1, 2))
    assert one.arrival_s.tolist() == same.arrival_s.tolist()
    assert one.arrival_s.tolist() != other.arrival_s.tolist()


class FakeOrigin:
    """Stands in for the public address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, raw: bytes | None) -> None:
        self.raw = raw
        self.calls = 0
        monkeypatch.setattr(registry.urllib.request, "urlopen", self.open)

    def open(self, url: str, timeout: float) -> Any:
        self.calls += 1
        if self.raw is None:
            raise registry.urllib.error.URLError("no network")
        return io.BytesIO(self.raw)


def _small_entry(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    entry = {**profiles()["azure-2023-code"], "requests": 2}
    entry["input_tokens"] = {**entry["input_tokens"], "mean": 3994.0}
    entry["output_tokens"] = {**entry["output_tokens"], "mean": 9.0}
    monkeypatch.setattr(registry, "profiles", lambda: {"azure-2023-code": {**entry, **changes}})


def test_a_download_is_verified_cached_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = FakeOrigin(monkeypatch, AZURE.encode())
    _small_entry(monkeypatch)
    first, second = find_trace("azure-2023-code"), find_trace("azure-2023-code")
    assert first.source.origin == second.source.origin == "download"
    assert len(second) == 2
    assert origin.calls == 1


def test_a_cached_file_that_was_changed_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeOrigin(monkeypatch, AZURE.encode())
    _small_entry(monkeypatch)
    find_trace("azure-2023-code")
    (cached,) = (tmp_path / "cache" / "traces").glob("*.csv")
    cached.write_text(AZURE.replace("4808", "4809"))
    trace = find_trace("azure-2023-code")
    assert trace.source.origin == "generated"
    assert any("SHA-256" in note for note in trace.source.notes)


def test_a_download_with_another_number_of_requests_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeOrigin(monkeypatch, AZURE.encode())
    _small_entry(monkeypatch, requests=3)
    trace = find_trace("azure-2023-code")
    assert trace.source.origin == "generated"
    assert any("2 requests, published are 3" in note for note in trace.source.notes)


def test_without_a_network_the_report_says_why_the_trace_was_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeOrigin(monkeypatch, None)
    trace = find_trace("azure-2023-code")
    assert trace.source.origin == "generated"
    assert any("no network" in note for note in trace.source.notes)


@pytest.mark.parametrize("name", REQUEST_TRACES)
def test_shipped_profiles_are_those_of_the_public_files(name: str, traces_folder: Path) -> None:
    entry = profiles()[name]
    trace = find_trace(name, places=Places(traces_folder))
    assert trace.source.origin == "folder"
    computed = profile_of(trace, tuple(entry["sources"]))
    assert {key: entry[key] for key in computed} == computed


@pytest.mark.parametrize("model", ["m-small", "m-mid"])
def test_servegen_tables_are_drawn_at_the_wanted_rate(model: str, traces_folder: Path) -> None:
    selection = Selection(rate=6, start_s=86_400, duration_s=7_200, seed=3)
    trace = find_trace(f"servegen-{model}", selection, Places(traces_folder))
    same = find_trace(str(traces_folder / f"servegen_{model}_clients_10min.csv.gz"), selection)
    assert trace.source.origin == "folder"
    assert trace.mean_rate == pytest.approx(6, rel=0.05)
    assert trace.span_s == 7_200
    assert trace.arrival_s.tolist() == same.arrival_s.tolist()
    assert measure(trace).cv > 1.05, "more bursty than Poisson"


def test_servegen_at_its_recorded_rate_over_days_is_refused_as_too_much(traces_folder: Path) -> None:
    with pytest.raises(ValueError, match="choose a lower rate or a shorter window"):
        find_trace("servegen-m-small", Selection(), Places(traces_folder))


def test_lengths_are_found_by_name(traces_folder: Path) -> None:
    prompts, answers = find_lengths("vidur-arxiv-summarization", Places(traces_folder))
    assert len(prompts) == len(answers) == 28_257
    assert float(prompts.mean()) == pytest.approx(2588, abs=1)


def test_lengths_in_another_layout_are_refused() -> None:
    with pytest.raises(TraceFormatError, match="num_prefill_tokens"):
        read_lengths("a,b\n1,2\n", HERE)

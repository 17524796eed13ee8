"""Traces by name: in a folder, else downloaded from their public origin, else generated from a profile."""

import hashlib
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from trimtab.replay import servegen
from trimtab.replay.readers import TraceFormatError, read_lengths, read_requests, read_text
from trimtab.replay.synthesis import generate, profile_from_json
from trimtab.replay.trace import Ints, Source, Trace, window, with_rate

FOLDER_VARIABLE = "TRIMTAB_TRACES"
CACHE_VARIABLE = "TRIMTAB_CACHE"
DOWNLOAD_TIMEOUT_SECONDS = 20.0
MAX_DOWNLOAD_BYTES = 64 * 2**20
LENGTH_TOLERANCE = 0.01
LENGTHS: dict[str, Any] = {
    "vidur-arxiv-summarization": {
        "files": ("vidur_arxiv_summarization_lengths",),
        "url": "https://raw.githubusercontent.com/microsoft/vidur/6d98aa8f71696520acc603d87439e77cc78160a7"
        "/data/processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
    }
}
SUFFIXES = ("", ".csv.gz", ".csv", ".jsonl.gz", ".jsonl")


class TraceNotFoundError(LookupError):
    """No such trace; the message lists the known names and where was looked."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a trace, at which mean rate (None: as recorded) and with which seed."""

    rate: float | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Where traces are looked for; None: the environment's folder, or the user's cache folder."""

    folder: Path | None = None
    cache: Path | None = None
    download: bool = True

    def traces(self) -> Path | None:
        """The folder of traces: the option, else the environment."""
        setting = os.environ.get(FOLDER_VARIABLE)
        return self.folder or (Path(setting) if setting else None)

    def downloads(self) -> Path:
        """Where downloaded traces are kept."""
        setting = os.environ.get(CACHE_VARIABLE)
        base = Path(setting) if setting else Path.home() / ".cache" / "trimtab"
        return (self.cache or base) / "traces"


def profiles() -> dict[str, Any]:
    """Everything that the package knows of public traces, by name."""
    text = resources.files("trimtab.replay").joinpath("profiles.json").read_text(encoding="utf-8")
    known: dict[str, Any] = json.loads(text)["traces"]
    return known


def known_names() -> list[str]:
    """Names that `find_trace` accepts without a folder."""
    return sorted(profiles())


def find_trace(name: str, selection: Selection = Selection(), places: Places = Places()) -> Trace:
    """The trace of a name or path, cut and rescaled as `selection` says; `trace.source` tells where it comes from.

    Raises TraceNotFoundError for unknown names, TraceFormatError for unreadable files.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(path, _stem(path.name), selection, "path")
    entry = profiles().get(_canonical(name))
    folder = places.traces()
    if folder is not None:
        found = _in_folder(folder, name, entry)
        if found is not None:
            return _from_file(found, _canonical(name), selection, "folder")
    if entry is None:
        looked = f"; looked in {folder}" if folder else f"; set {FOLDER_VARIABLE} to a folder of traces"
        raise TraceNotFoundError(f"unknown trace {name!r}: known are {', '.join(known_names())}{looked}")
    reason = "downloads are switched off"
    if places.download and "upstream" in entry:
        try:
            return _select(_downloaded(_canonical(name), entry, places.downloads(), selection.seed), selection)
        except (OSError, TraceFormatError) as error:
            reason = f"download failed: {error}"
    elif "upstream" not in entry:
        reason = "its origin publishes no single file to download"
    made = generate(
        profile_from_json(_canonical(name), entry),
        rate=selection.rate,
        start_s=selection.start_s,
        duration_s=selection.duration_s,
        seed=selection.seed,
    )
    return replace(made, source=replace(made.source, notes=(*made.source.notes, reason)))


def find_lengths(name: str, places: Places = Places()) -> tuple[Ints, Ints]:
    """A length distribution by name or path: arrays of prompt and answer tokens, in file order."""
    folder = places.traces()
    path: Path | None = Path(name).expanduser()
    if path is not None and not path.is_file():
        path = None if folder is None else _in_folder(folder, f"{name}_lengths", LENGTHS.get(name))
    if path is not None:
        return read_lengths(read_text(path), Source("folder", str(path)))
    if name not in LENGTHS or not places.download:
        raise TraceNotFoundError(f"unknown lengths {name!r}: known are {', '.join(LENGTHS)}, or the path of a file")
    url = LENGTHS[name]["url"]
    try:
        return read_lengths(_fetch(url).decode("utf-8-sig"), Source("download", url))
    except OSError as error:
        raise TraceNotFoundError(f"lengths {name!r} are in no folder and could not be downloaded: {error}") from error


def _canonical(name: str) -> str:
    text = _stem(name).lower().replace("_", "-")
    for known, entry in profiles().items():
        if text == known or text in entry.get("aliases", ()):
            return known
    return text


def _stem(file_name: str) -> str:
    for suffix in sorted(SUFFIXES[1:], key=len, reverse=True):
        if file_name.endswith(suffix):
            return file_name[: -len(suffix)]
    return file_name


def _in_folder(folder: Path, name: str, entry: dict[str, Any] | None) -> Path | None:
    stems = list(entry.get("files", ())) if entry else []
    plain = _stem(name).lower().replace("-", "_")
    stems += [name, plain, f"servegen_{_stem(name).lower()}{servegen.CLIENTS_MARK}"]
    if plain.startswith("servegen_"):
        stems.append(f"servegen_{_stem(name).lower().removeprefix('servegen-')}{servegen.CLIENTS_MARK}")
    for stem in stems:
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None


def _from_file(path: Path, name: str, selection: Selection, origin: str) -> Trace:
    if servegen.CLIENTS_MARK in path.name:
        return servegen.synthesise(
            path,
            name,
            rate=selection.rate,
            start_s=selection.start_s,
            duration_s=selection.duration_s,
            seed=selection.seed,
        )
    source = Source("path" if origin == "path" else "folder", str(path))
    return _select(read_requests(read_text(path), name, source, selection.seed), selection)


def _select(trace: Trace, selection: Selection) -> Trace:
    if selection.start_s or selection.duration_s is not None:
        trace = window(trace, selection.start_s, selection.duration_s)
    return trace if selection.rate is None else with_rate(trace, selection.rate, selection.seed)


def _downloaded(name: str, entry: dict[str, Any], cache: Path, seed: int) -> Trace:
    """The cached or freshly fetched file, verified.

    Its first download is verified by number of requests and mean lengths; from then on by the SHA-256 recorded
    beside it, and by the profile's own SHA-256 where the profile states one.
    """
    url: str = entry["upstream"]["url"]
    path = cache / f"{name}{Path(url).suffix}"
    digest_path = path.with_name(path.name + ".sha256")
    cached = path.is_file() and digest_path.is_file()
    raw = path.read_bytes() if cached else _fetch(url)
    digest = hashlib.sha256(raw).hexdigest()
    stated = entry["upstream"].get("sha256") or (digest_path.read_text().strip() if cached else digest)
    if digest != stated:
        path.unlink(missing_ok=True)
        digest_path.unlink(missing_ok=True)
        raise TraceFormatError(f"{url}: SHA-256 {digest} is not the expected {stated}")
    source = Source("download", url, (f"sha256 {digest}",))
    trace = read_requests(raw.decode("utf-8-sig"), name, source, seed)
    _verify(trace, entry, url)
    if not cached:
        cache.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        digest_path.write_text(digest + "\n")
    return trace


def _fetch(url: str) -> bytes:
    if not url.startswith("https://"):
        raise OSError(f"{url} is no https address")
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:  # noqa: S310 - https only
            raw: bytes = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.URLError as error:
        raise OSError(f"{url}: {error.reason}") from error
    if len(raw) > MAX_DOWNLOAD_BYTES:
        raise OSError(f"{url} is larger than {MAX_DOWNLOAD_BYTES} bytes")
    return raw


def _verify(trace: Trace, entry: dict[str, Any], url: str) -> None:
    if len(trace) != entry["requests"]:
        raise TraceFormatError(f"{url}: {len(trace)} requests, published are {entry['requests']}")
    for column, tokens in (("input_tokens", trace.input_tokens), ("output_tokens", trace.output_tokens)):
        stated = entry[column]["mean"]
        if abs(float(tokens.mean()) - stated) > LENGTH_TOLERANCE * stated:
            raise TraceFormatError(f"{url}: mean {column} {tokens.mean():.1f}, published are {stated}")

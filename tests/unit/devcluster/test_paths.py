"""Where things lie, and the keys by which builds are found again."""

from pathlib import Path

import pytest

from devcluster import paths
from devcluster.paths import ClusterError, cache_dir, content_key, port, state_dir


def test_the_cache_follows_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "own"))
    assert cache_dir() == (tmp_path / "own").resolve()
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "trimtab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "trimtab"


def test_sockets_below_the_default_state_fit_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIMTAB_STATE", raising=False)
    assert len(str(state_dir() / "cluster" / "containerd.sock.ttrpc")) < 108


def test_a_key_changes_with_names_contents_and_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = content_key(tmp_path, "x")
    assert content_key(tmp_path, "x") == first
    assert content_key("x", tmp_path) != first
    (tmp_path / "a").write_text("2")
    second = content_key(tmp_path, "x")
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, content_key(tmp_path, "x")}) == 3
    assert content_key("ab", "c") != content_key("a", "bc")


def test_a_file_that_moves_to_another_folder_changes_the_key(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one" / "f").write_text("1")
    first = content_key(tmp_path)
    (tmp_path / "one" / "f").rename(tmp_path / "two" / "f")
    assert content_key(tmp_path) != first


def test_what_python_leaves_beside_the_source_does_not_change_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = content_key(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert content_key(tmp_path) == first


def test_the_ports_move_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.PORT_BASE, "31000")
    assert [port(offset) for offset in range(3)] == [31000, 31001, 31002]
    monkeypatch.setenv(paths.PORT_BASE, "80")
    with pytest.raises(ClusterError, match="TRIMTAB_PORT_BASE=80") as refused:
        port(0)
    assert refused.value.code == 3

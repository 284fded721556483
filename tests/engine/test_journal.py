from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskrunner.engine.store import journal
from taskrunner.engine.store.journal import Journal


def test_remembers_by_content_not_by_id_alone(tmp_path: Path) -> None:
    Journal(str(tmp_path / "j")).record("a", "key1", "run1")
    again = Journal(str(tmp_path / "j"))
    assert again.find("a", "key1") is not None
    assert again.find("a", "key2") is None
    assert again.find("b", "key1") is None


def test_forgets(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    first = Journal(path)
    for name in "abc":
        first.record(name, "k", "r")
    first.forget(["b", "unknown"])
    assert [name for name in "abc" if Journal(path).find(name, "k")] == ["a", "c"]
    first.forget(None)
    assert not any(Journal(path).find(name, "k") for name in "abc")


def test_a_line_cut_by_a_crash_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(str(path)).record("a", "k", "r")
    for cut in range(1, path.stat().st_size):
        whole = (json.dumps({"step": "b", "key": "k", "run": "r"}) + "\n").encode()
        path.write_bytes(whole + whole[:cut].rstrip(b"\n"))
        reopened = Journal(str(path))
        reopened.record("c", "k", "r")
        again = Journal(str(path))
        assert again.find("b", "k")
        assert again.find("c", "k")


def test_binary_rubbish_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'\xff\xfe\0\n[1]\n"x"\n{"step": "a", "key": "k", "run": "r"}\n')
    assert Journal(str(path)).find("a", "k")


def test_reading_writes_nothing(tmp_path: Path) -> None:
    Journal(str(tmp_path / "folder" / "j")).find("a", "k")
    assert not (tmp_path / "folder").exists()


def test_a_long_journal_is_compacted(tmp_path: Path) -> None:
    path = tmp_path / "j"
    line = json.dumps({"step": "a", "key": "k", "run": "r"}) + "\n"
    path.write_text(line * (journal.COMPACT_AT // len(line) + 2))
    Journal(str(path)).record("b", "k", "r")
    assert path.stat().st_size < 1000
    assert Journal(str(path)).find("a", "k")


def test_each_folder_has_its_own_entries(tmp_path: Path) -> None:
    path = str(tmp_path / "j")
    Journal(path, "/one").record("a", "k", "r")
    assert Journal(path, "/two").find("a", "k") is None
    Journal(path, "/two").record("a", "k", "r2")
    assert Journal(path, "/two").forget(["a", "b"]) == ["a"]
    (found,) = [Journal(path, "/one").find("a", "k")]
    assert found is not None
    assert found["run"] == "r"


def test_compacting_keeps_what_other_folders_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "j")
    Journal(path, "/one").record("a", "k", "r")
    monkeypatch.setattr(journal, "COMPACT_AT", 1)
    Journal(path, "/two").record("b", "k", "r")
    assert Journal(path, "/one").find("a", "k")
    assert Journal(path, "/two").find("b", "k")


@pytest.mark.parametrize(
    "line",
    ['{"step": 5, "key": "k", "run": "r"}', '{"step": "a", "key": "k"}', '{"forget": 5}', '{"forget": [5]}'],
)
def test_odd_entries_are_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j"
    path.write_text(line + "\n")
    assert Journal(str(path)).find("a", "k") is None
    Journal(str(path)).forget(None)

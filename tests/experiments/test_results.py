"""The table and the index of a sweep, whatever was left of them and whatever a result says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskrunner.experiments import durations, index, results

ROW = results.Row("p", "1", 1, 1, "c", "f", "p/1/result.json", "", {**results.digest({}), "stamp": [1, 2]})
ODD: list[Any] = ["x", [["x"]], {}, True, 10**400, float("nan"), None]


def saved(folder: Path) -> tuple[str, str]:
    results.save(folder, [ROW])
    return (folder / index.NAME).read_text(), (folder / "results.csv").read_text()


@pytest.mark.parametrize("name", ["results.csv", index.NAME])
def test_a_table_that_was_lost_is_written_again(tmp_path: Path, name: str) -> None:
    before = saved(tmp_path)
    (tmp_path / name).unlink()
    assert saved(tmp_path) == before


def test_what_is_up_to_date_is_left_as_it_is(tmp_path: Path) -> None:
    saved(tmp_path)
    written = [path.stat().st_ino for path in tmp_path.iterdir()]
    saved(tmp_path)
    assert [path.stat().st_ino for path in tmp_path.iterdir()] == written


@pytest.mark.parametrize("value", ODD, ids=[str(number) for number in range(len(ODD))])
def test_odd_values_of_a_result_are_left_out(tmp_path: Path, value: Any) -> None:
    about = dict.fromkeys(("began", "ended", "mode"), value)
    values = results.digest({"metadata": {**about, "hostnames": [value]}, "results": {"failed": value}})
    times = [values[name] for name in ("began", "ended", "failed")]
    assert times == [None] * 3
    assert {type(values[name]) for name in ("mode", "host")} <= {str, type(None)}
    json.dumps(values, allow_nan=False)


@pytest.mark.parametrize("name", ["began", "mode", "host", "start", "pattern", "path", "values"])
@pytest.mark.parametrize("value", ODD, ids=[str(number) for number in range(len(ODD))])
def test_an_index_that_was_changed_by_hand_does_no_harm(tmp_path: Path, name: str, value: Any) -> None:
    line = {**results.as_dict(ROW), "values": ROW.values, "mode": "unified", "began": 1.0, "ended": 2.0}
    text = json.dumps({**line, name: value})
    (tmp_path / index.NAME).write_text(f"{text}\nnot JSON\n[]\n")
    durations.read(tmp_path)
    assert json.loads(saved(tmp_path)[0])["path"] == ROW.path

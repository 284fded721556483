"""Result files: what a record contains, and those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from taskrunner import __version__
from taskrunner.inference.bench.measure import Settings, measure
from taskrunner.inference.results import model
from taskrunner.inference.results.read import NoResult, load
from taskrunner.inference.results.schema import SCHEMA
from tests.helpers import Process
from tests.inference.conftest import Told

OLD = Path(__file__).parent / "samples" / "result-version-1.json"


def test_the_schema_is_what_the_model_says() -> None:
    """`python -m taskrunner.inference.results.model` writes it."""
    assert SCHEMA.read_text() == model.schema()


def test_a_measurement_has_a_row_for_each_request(truth: Callable[..., Told], tmp_path: Path) -> None:
    url = truth("--ttft", 20, "--gap", 5, "--fault", "http_500", "--faults", 1).url
    found = measure(
        Settings(url, prompt_tokens=8, output_tokens=4, requests=5, warmup=0, failures=1.0, lag=1.0)
    )
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    path = tmp_path / "r.json"
    path.write_text(json.dumps(found))
    assert load(path) == found
    assert found["metadata"]["versions"]["taskrunner"] == __version__
    rows = found["requests"]
    assert [row["error"] for row in rows] == ["http_500", "", "", "", ""]
    assert [len(row["itl"]) for row in rows] == [0, 3, 3, 3, 3]
    assert sorted(row["start"] for row in rows) == [row["start"] for row in rows]
    assert sorted(row["ttft"] for row in rows[1:]) == pytest.approx(
        sorted(found["results"]["ttft"]["raw"]), abs=1e-3
    )
    assert found["results"]["ttft"]["unit"] == "ms"
    assert found["results"]["ttft"]["p50"] == pytest.approx(20, abs=8)


def test_a_result_of_version_1_is_read() -> None:
    old, found = json.loads(OLD.read_text()), load(OLD)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    for name in ("ttft", "tpot", "itl", "e2e_latency"):
        for of in ("mean", "p50", "stdev"):
            assert found["results"][name][of] == pytest.approx(old["results"][name][of] * 1e3)
        assert found["results"][name]["n"] == old["results"][name]["n"]
    assert found["results"]["duration_ms"] == pytest.approx(old["results"]["duration"] * 1e3)
    assert found["results"]["throughput_tps"] == old["results"]["throughput_tps"]


def without(found: dict[str, Any], *names: str) -> dict[str, Any]:
    part = found
    for name in names[:-1]:
        part = part[name]
    del part[names[-1]]
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: "", "not JSON"),
        (lambda text: "[]", "not a measurement result"),
        (lambda text: json.dumps(without(json.loads(text), "results", "ttft")), "ttft"),
        (lambda text: json.dumps({**json.loads(text), "version": 3}), "version 3"),
        (lambda text: json.dumps({**json.loads(text), "results": 5}), "not a whole result"),
        (lambda text: json.dumps({"model_id": "m", "ttfts": []}), "bench import"),
    ],
)
def test_what_is_no_result_is_told_in_a_line(
    cli: Callable[..., Process], tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    path = tmp_path / "a result.json"
    path.write_text(change(OLD.read_text()))
    with pytest.raises(NoResult, match=said):
        load(path)
    done = cli("mlflow", "log", path)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False)

"""What the analysis says of simulated sweeps: how often it errs, and what it finds."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.statistics import Case, coverage, modes_found, share
from taskrunner.analysis import text, verdicts
from taskrunner.analysis.analysis import analysis
from taskrunner.analysis.compare import holm, signs
from taskrunner.analysis.load import load
from taskrunner.analysis.spread import blocks_for, least, starts
from taskrunner.errors import NotFoundError
from taskrunner.experiments import comparisons
from taskrunner.report.page import page
from tests.analysis import made
from tests.helpers import Process, command, completed


def analysed(folder: Path) -> dict[str, Any]:
    return analysis(load(folder))


def by_id(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in document["comparisons"]}


def tcp_slower(pattern: Any) -> float:
    return 1.3 if pattern.backend == "tcp" else 1.0


@pytest.mark.parametrize("case", [Case(2, 0.05), Case(3, 0.2)])
def test_nothing_is_found_where_nothing_differs(case: Case) -> None:
    assert share(case, verdicts.DIFFERS, 200) <= 0.09  # 5 % and what 200 sweeps may be off


def test_effects_are_found_as_often_as_is_promised() -> None:
    assert share(Case(3, 0.1, 0.12), verdicts.DIFFERS, 100) > 0.9
    assert 0.55 < share(Case(3, 0.1, 0.08), verdicts.DIFFERS, 100) < 0.92
    pooled, alone = coverage(Case(3, 0.1, 0.08), 200)
    assert pooled > 0.91
    assert alone > 0.91


def test_equivalence_is_declared_where_starts_differ_little() -> None:
    assert share(Case(3, 0.05, 0.0, 0.01, 30 / math.e, "2 ms"), verdicts.EQUIVALENT, 60) > 0.85


def test_two_modes_are_told_and_long_tails_are_not() -> None:
    assert modes_found("0.2", 60) > 0.85
    assert modes_found("one", 60) < 0.06
    assert modes_found("exponential", 60) < 0.12


def test_what_can_be_detected_is_what_the_plan_shows() -> None:
    for blocks in (2, 3, 4, 5):
        found = least(0.03 * math.sqrt(2 / blocks), 5 * (blocks - 1))
        assert found == pytest.approx(comparisons.detectable(blocks, 6), rel=1e-6)
    assert blocks_for(0.09, lambda blocks: (0.03 * math.sqrt(2 / blocks), 5 * (blocks - 1))) == 3
    assert blocks_for(1e-4, lambda blocks: (0.03 * math.sqrt(2 / blocks), 5 * (blocks - 1))) is None


@pytest.mark.parametrize("pairs", [1, 3, 13])
def test_a_comparison_of_few_patterns_errs_no_more(pairs: int) -> None:
    noisy = Case(3, 0.33, restart=0.01, pairs=pairs)
    assert share(noisy, verdicts.DIFFERS, 200) <= 0.09


def test_patterns_of_one_configuration_are_compared_without_the_spread_of_starts() -> None:
    noisy = Case(3, 0.1, restart=0.1, within=True)
    assert share(noisy, verdicts.DIFFERS, 200) <= 0.09
    assert share(noisy._replace(effect=0.08), verdicts.DIFFERS, 60) > 0.9


def test_corrections_for_many_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert signs(np.array([0.1] * 6)) == pytest.approx(2 / 64)


def test_planted_effects_of_a_plan_come_out(tmp_path: Path) -> None:
    document = analysed(made.sweep(tmp_path, ttft=tcp_slower))
    found = by_id(document)
    assert found["CMP-01"]["verdict"] == found["CMP-02"]["verdict"] == verdicts.DIFFERS
    assert found["CMP-01"]["interval"][0] < 1.3 < found["CMP-01"]["interval"][1]
    assert len(found["CMP-01"]["pairs"]) == 10
    assert found["CMP-03"]["verdict"] in (verdicts.EQUIVALENT, verdicts.UNDECIDED)
    assert document["counting"] == 111
    shown = "\n".join(text.lines(document))
    assert "CMP-01  ttft" in shown
    assert "111 of 111 results count" in shown
    costs = {one["backend"]: one for one in document["transfer_cost"]}
    assert costs["efa"]["us_per_token"] == pytest.approx(made.PER_TOKEN_MS * 0.3 * 1e3, rel=0.1)


def test_a_slow_first_phase_is_found_with_its_place_in_time(tmp_path: Path) -> None:
    document = analysed(made.sweep(tmp_path / "slow", requests=40, cv=0.05, slow_first=0.2))
    assert len(document["modes"]) > 30
    assert statistics.median(one["slow_first"] for one in document["modes"]) < 0.01
    assert any("come first" in alarm["text"] for alarm in document["alarms"])
    quiet = analysed(made.sweep(tmp_path / "quiet", requests=40, cv=0.05))
    assert len(quiet["modes"]) <= 3


def test_alarms_name_the_tools_that_look_closer(tmp_path: Path) -> None:
    def slow(pattern: Any) -> float:
        return {"efa": 1.6, "tcp": 6.0}.get(pattern.backend, 1.0)

    place = made.sweep(tmp_path / "slow", ttft=slow, tpot=lambda one: 1.6 if one.backend == "efa" else 1.0)
    alarms = analysed(place)["alarms"]
    assert {one["kind"] for one in alarms} == {"efa", "tpot", "tcp"}
    assert (
        "runner experiment phase2 run p2-L0-fi-rdm-bw"
        in next(one for one in alarms if one["kind"] == "efa")["command"]
    )
    assert analysed(made.sweep(tmp_path / "quiet"))["alarms"] == []
    schedule = json.loads((place / "schedule.json").read_text())
    typed = {"command": "taskrunner experiment 'my plans/phase2.json' run", "options": "--env TP_SIZE=4"}
    (place / "schedule.json").write_text(json.dumps({**schedule, **typed}))
    efa = next(one["command"] for one in analysed(place)["alarms"] if one["kind"] == "efa")
    assert efa.startswith("taskrunner experiment 'my plans/phase2.json' run p2-L0-fi-rdm-bw")
    assert efa.endswith(" --env TP_SIZE=4")


def test_the_bandwidth_of_the_transfer_stands_beside_that_of_a_tool(tmp_path: Path) -> None:
    place = made.sweep(tmp_path)
    tool = {
        "kind": "low-level",
        "valid": True,
        "fabric": {"proven": "efa"},
        "summary": {"bandwidth_gbps": 95.0},
    }
    for name, record in (("a", tool), ("b", {**tool, "valid": False, "summary": {"bandwidth_gbps": 500.0}})):
        (place / f"tool-{name}.json").write_text(json.dumps(record))
    found = {one["backend"]: one for one in analysed(place)["bandwidths"]}
    assert found["efa"]["achieved_gbps"] == pytest.approx(262_144 * 8 / 0.05 / 1e6)
    assert found["efa"]["share"] == pytest.approx(41.94 / 95, rel=0.01)
    assert found["tcp"]["raw_gbps"] is None


def test_starts_of_two_kinds_are_told(tmp_path: Path) -> None:
    place = made.sweep(tmp_path, "cpu-smoke", blocks=6, cv=0.02, restart=0.005)
    for path in sorted(place.glob("*/*/result.json")):
        record = json.loads(path.read_text())
        if record["metadata"]["block"] in ("2", "5"):
            values = record["results"]["ttft"]
            values["raw"] = [value * 1.6 for value in values["raw"]]
            path.write_text(json.dumps(record))
    found = analysed(place)["one_mode_per_start"]
    assert len(found) == 4
    assert found[0]["starts"] == 6


@pytest.mark.parametrize(("blocks", "verdict"), [(1, verdicts.OF_THESE_STARTS), (2, verdicts.UNDECIDED)])
def test_few_starts_are_said_to_be_few(tmp_path: Path, blocks: int, verdict: str) -> None:
    place = made.sweep(tmp_path, blocks=blocks, restart=0.06, seed=5)
    found = by_id(analysed(place))
    assert found["CMP-02"]["verdict"] == verdict
    if blocks > 1:
        assert found["CMP-02"]["more_blocks"] >= 1


def test_half_a_sweep_keeps_complete_pairs_and_says_what_is_left_out(tmp_path: Path) -> None:
    place = made.sweep(tmp_path, ttft=tcp_slower)
    for path in place.glob("p2-tcp-1k-c1/*/result.json"):
        path.unlink()
    (place / "p2-tcp-12k-c1" / "3" / "result.json").write_text('{"version": 2, "metadata": {')
    (place / "p2-efa-1k-c16" / "1" / "notes.json").write_text('["something else"]')
    record = json.loads((place / "p2-unified-1k-c1" / "2" / "result.json").read_text())
    record["results"] |= {"doubtful": True, "doubtful_because": ["foreign load of 0.4 cores by make"]}
    (place / "p2-unified-1k-c1" / "2" / "result.json").write_text(json.dumps(record))
    document = analysed(place)
    found = by_id(document)["CMP-01"]
    assert found["verdict"] == verdicts.DIFFERS
    assert ["p2-efa-1k-c1", "p2-tcp-1k-c1"] in found["left_out"]
    assert [one["why"] for one in document["left_out"]] == ["foreign load of 0.4 cores by make"]
    assert len(document["problems"]) == 2
    assert load(place, doubtful=True).measurements[0].why == ""


def test_a_part_that_was_measured_by_itself_belongs_to_the_starts_of_the_plan(tmp_path: Path) -> None:
    place = made.sweep(tmp_path, ttft=tcp_slower)
    before = analysed(place)
    for path in place.glob("p2-tcp-*/*/result.json"):
        record = json.loads(path.read_text())
        # `run L3-TCP` counts its own starts from 1.
        record["metadata"]["start"] = record["metadata"]["block"]
        path.write_text(json.dumps(record))
    assert analysed(place) == before


ODD: list[tuple[str, Any]] = [
    ("metadata.block", "9" * 5000),
    ("metadata.start", "x"),
    ("metadata.began", float("nan")),
    ("metadata.ended", float("inf")),
    ("metadata.servers", {"a": {"argv": 5, "versions": "x", "model": "str"}, "b": 1}),
    ("results.ttft", {"unit": "ms", "n": 1, "mean": 1e-320}),
    ("results.tpot", {"unit": "ms", "n": 1, "mean": 1e308, "raw": [float("inf"), -1.0, True]}),
    ("results.throughput_tps", float("inf")),
    ("results.kv_transfer", {"bytes": 0, "external_tokens": 0}),
    (
        "requests",
        [
            {
                "start": 0,
                "ttft": 1.0,
                "tpot": None,
                "e2e": 1.0,
                "itl": [],
                "prompt_tokens": 1,
                "output_tokens": 1,
                "error": "",
                "proxy_prefill_time": float("nan"),
            }
        ],
    ),
]


@pytest.mark.parametrize(("member", "value"), ODD, ids=[name for name, _ in ODD])
def test_whatever_a_record_holds_it_spoils_no_other(tmp_path: Path, member: str, value: Any) -> None:
    place = made.sweep(tmp_path, "cpu-smoke", blocks=3)
    path = next(place.glob("pcpu-pair-120-c1/2/result.json"))
    record = json.loads(path.read_text())
    *parts, last = member.split(".")
    target = record
    for part in parts:
        target = target[part]
    target[last] = value
    path.write_text(json.dumps(record))
    sweep = load(place)
    document = analysis(sweep)
    json.dumps(document, allow_nan=False)
    assert document["counting"] >= 11
    assert "NaN" not in page(sweep, document).html.partition('id="specs">')[2].partition("</script>")[0]


@pytest.mark.parametrize(
    "schedule",
    [
        "null",
        "[]",
        '{"starts": 5}',
        '{"starts": [{"number": [1]}]}',
        '{"comparisons": [{}]}',
        '{"comparisons": [{"id": "x", "pairs": [["a"]]}]}',
        '{"queue": 5}',
        "{",
        '{"tools": [1]}',
    ],
)
def test_a_schedule_that_no_sweep_has_written_is_a_problem_of_its_own(tmp_path: Path, schedule: str) -> None:
    place = made.sweep(tmp_path, "cpu-smoke", blocks=2)
    (place / "schedule.json").write_text(schedule)
    sweep = load(place)
    document = analysis(sweep)
    assert (document["counting"], document["comparisons"]) == (8, [])
    assert any("schedule.json" in problem for problem in document["problems"])
    assert "<html" in page(sweep, document).html


@pytest.mark.parametrize("keep", ["p2-unified-*", "p2-*-1k-*"])
def test_a_sweep_under_way_has_a_page(tmp_path: Path, keep: str) -> None:
    place = made.sweep(tmp_path, blocks=1 if keep == "p2-unified-*" else 3)
    kept = set(place.glob(f"{keep}/*/result.json"))
    for path in set(place.glob("*/*/result.json")) - kept:
        path.unlink()
    sweep = load(place)
    assert "not measurable" in page(sweep, analysis(sweep)).html


@pytest.mark.parametrize("margin", ["foo", "5", "-1 %", "0", "nan", "3 s"])
def test_a_margin_that_means_nothing_is_refused(tmp_path: Path, margin: str) -> None:
    done = completed(command("analyze", tmp_path, f"--margin={margin}"))
    assert (done.returncode, "expected a difference such as 3 %" in done.stderr) == (2, True)


def test_sweeps_without_a_common_pattern_are_no_success(tmp_path: Path) -> None:
    one = made.sweep(tmp_path / "a", "cpu-smoke", blocks=2)
    other = made.sweep(tmp_path / "b", blocks=2)
    done = analyze(one, "--against", other)
    assert (done.returncode, "no pattern in common" in done.stderr) == (2, True)


def test_nothing_to_measure_is_a_verdict_too(tmp_path: Path) -> None:
    place = made.sweep(tmp_path)
    for path in place.glob("p2-tcp-*/*/result.json"):
        path.unlink()
    found = by_id(analysed(place))
    assert found["CMP-01"]["verdict"] == verdicts.NOT_MEASURABLE
    with pytest.raises(NotFoundError, match="no result of a measurement"):
        load(Path("."))


def test_results_of_two_versions_and_of_no_plan_are_estimates(tmp_path: Path) -> None:
    samples = Path(__file__).parents[1] / "inference" / "samples"
    (tmp_path / "old.json").write_text((samples / "result-version-1.json").read_text())
    place = made.sweep(tmp_path / "made", "cpu-smoke", blocks=1)
    (place / "schedule.json").unlink()
    (tmp_path / "new.json").write_text(next(place.glob("*/*/result.json")).read_text())
    document = analysed(tmp_path)
    assert document["measurements"] >= 2
    assert document["comparisons"] == []


def analyze(*words: object) -> Process:
    return completed(command("analyze", *words))


def test_the_command_fails_on_an_alarm_and_on_a_regression_only(tmp_path: Path) -> None:
    quiet = made.sweep(tmp_path / "a", "cpu-smoke", blocks=4, restart=0.002, cv=0.02)
    slower = made.sweep(
        tmp_path / "b", "cpu-smoke", blocks=4, restart=0.002, cv=0.02, ttft=lambda _: 1.2, seed=1
    )
    first = analyze(quiet)
    assert first.returncode == 0, first.stdout + first.stderr
    worse = analyze(slower, "--against", quiet)
    assert (worse.returncode, "differs" in worse.stdout) == (1, True), worse.stdout + worse.stderr
    better = analyze(quiet, "--against", slower, "--json")
    assert better.returncode == 0
    assert json.loads(better.stdout)["comparisons"][0]["ratio"] == pytest.approx(1 / 1.2, rel=0.02)
    missing = analyze(tmp_path / "nowhere")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 2)


class Value(NamedTuple):
    """As much of a measurement as the spread of starts needs."""

    configuration: str
    pattern: str
    block: int
    milliseconds: float

    def value(self, metric: str, statistic: str) -> float:
        return self.milliseconds


def test_the_terms_of_starts_are_least_squares_also_where_patterns_are_missing() -> None:
    random.seed(5)
    cells = [
        Value("a", f"p{row}", block, math.exp(random.gauss(row / 10 + block / 5, 0.1)))
        for row in range(7)
        for block in range(1, 5)
        if (row, block) not in ((0, 1), (3, 4), (6, 2))
    ]
    fitted = starts(cells, "ttft")  # type: ignore[arg-type]
    design = np.array(
        [
            [float(one.pattern == f"p{row}") for row in range(7)]
            + [float(one.block == block) for block in range(1, 5)]
            for one in cells
        ]
    )
    values = np.log([one.milliseconds for one in cells])
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    terms = solution[7:] - solution[7:].mean() + values.mean()
    assert [one.value for one in fitted.found] == pytest.approx(terms)
    assert fitted.freedom == len(cells) - rank
    assert fitted.rest == pytest.approx(((values - design @ solution) ** 2).sum() / fitted.freedom)


def test_the_starts_of_ten_thousand_patterns_take_a_moment() -> None:
    random.seed(6)
    many = [
        Value("a", f"p{row}", block, random.uniform(5, 9)) for row in range(10_000) for block in (1, 2, 3)
    ]
    began = time.monotonic()
    assert starts(many, "ttft").freedom == 2 * 9_999  # type: ignore[arg-type]
    assert time.monotonic() - began < 10

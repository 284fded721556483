"""Sweeps with a real engine, a real proxy and a real client; the servers compute nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.experiments.conftest import Bed
from tests.helpers import WHOLE, command, started_with, wait_for

PLAN: dict[str, Any] = {
    "name": "Tiny",
    "phase": "t",
    "infrastructure": {"node_count": 1, "model": "m"},
    "common_settings": {"max_tokens": 4, "warmup_iterations": 1, "measurement_iterations": 4},
    "layers": [
        {"id": "U", "mode": "unified", "matrix": {"values": {"prompt_tokens": [32, 64]}}},
        {
            "id": "P",
            "mode": "disaggregated",
            "transport": "cpu",
            "matrix": {"values": {"prompt_tokens": [32, 64]}},
        },
    ],
    "replicates": {"blocks": 2, "configurations": "all"},
    "requests": {"per_start": 4, "per_concurrency": 1},
}


def write(plan: dict[str, Any] = PLAN, name: str = "tiny.json") -> None:
    Path(name).write_text(json.dumps(plan))


def index() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("results/tiny/index.jsonl").read_text().splitlines()]


def test_each_measurement_is_told_with_its_figures_and_what_is_left(bed: Bed) -> None:
    write({**PLAN, "price_per_hour": 60.0})
    done = bed.experiment("tiny", "run", "U")
    said = [line for line in done.stdout.splitlines() if "TTFT p50" in line and "left" in line]
    assert len(said) == 4, done.stdout
    rows = {(row["pattern"], row["part"]): row for row in index()}
    for line, left in zip(said, (3, 2, 1, 0), strict=True):
        pattern, block = re.findall(r"(pt-\S+), block (\d)", line)[0]
        assert f"TTFT p50 {rows[pattern, block]['ttft_p50_ms']:.2f} ms, TPOT p50" in line
        assert f"; {left} of 4 measurements and {int(left > 1)} of 2 starts left" in line
        assert bool(re.search(r", 0\.\d\d to pay", line)) is bool(left)
        # As long as it has taken until now, not as long as servers of real models take.
        assert not re.search(r"about \d+m|about \d+h", line)


def test_a_sweep_measures_everything_once_with_the_starts_of_its_plan(bed: Bed) -> None:
    write()
    done = bed.experiment("tiny", "run", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 measured" in done.stdout
    assert bed.starts() == ["unified", "producer", "consumer", "producer", "consumer", "unified"]
    rows = index()
    assert [row["valid"] for row in rows] == [True] * 8
    assert len({row["path"] for row in rows}) == 8
    assert Path("results/tiny/results.csv").read_text().count("\n") == 9
    again = bed.experiment("tiny", "run", "-q")
    assert (again.returncode, len(bed.starts())) == (0, 6)
    assert bed.experiment("tiny", "status").returncode == 0
    schedule = json.loads(Path("results/tiny/schedule.json").read_text())
    assert schedule["command"] == "taskrunner experiment tiny run"
    assert f"ENV_DIR={bed.env_dir}" in schedule["options"]


def test_what_is_lost_or_not_valid_is_measured_again_and_nothing_else(bed: Bed) -> None:
    write()
    assert bed.experiment("tiny", "run", "-q").returncode == 0
    stamps = {row["path"]: Path(row["path"]).read_text() for row in index()}
    lost = bed.env_dir / "results/tiny/pt-unified-32-c1/1/result.json"
    lost.unlink()
    doubtful = bed.env_dir / "results/tiny/pt-cpu-64-c1/2/result.json"
    record = json.loads(doubtful.read_text())
    record["results"]["doubtful"], record["results"]["doubtful_because"] = True, ["foreign load"]
    doubtful.write_text(json.dumps(record))
    assert bed.experiment("tiny", "run", "-q").returncode == 0
    assert bed.starts()[6:] == ["unified", "producer", "consumer"]
    changed = {row["path"] for row in index() if Path(row["path"]).read_text() != stamps[row["path"]]}
    assert changed == {
        "results/tiny/pt-unified-32-c1/1/result.json",
        "results/tiny/pt-cpu-64-c1/2/result.json",
    }


def test_a_server_that_cannot_start_is_tried_once_more_and_the_rest_goes_on(bed: Bed) -> None:
    write({**PLAN, "replicates": {"blocks": 1}})
    (bed.faults / "consumer").write_text("refuse")
    done = bed.experiment("tiny", "run", "-q")
    # The second pattern of the same start has found it.
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 measured" in done.stdout


def test_a_server_that_dies_is_started_anew_and_what_it_spoiled_is_measured_at_the_end(bed: Bed) -> None:
    # It dies within the first pattern, however late the machine notices its third request.
    longer = {**PLAN["common_settings"], "measurement_iterations": 80}
    write({**PLAN, "replicates": {"blocks": 1}, "common_settings": longer})
    (bed.faults / "unified").write_text("die 3")
    done = bed.experiment("tiny", "run", "U", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 measured" in done.stdout
    # The one that died, the one for the second pattern, and the one for the first again.
    assert bed.starts() == ["unified"] * 3


@pytest.mark.parametrize("name", ["producer", "consumer", "proxy"])
def test_a_process_that_is_killed_in_the_middle_spoils_nothing(bed: Bed, home: Path, name: str) -> None:
    slow = {**PLAN["common_settings"], "measurement_iterations": 60}
    write({**PLAN, "replicates": {"blocks": 1}, "common_settings": slow})
    with subprocess.Popen(
        command("experiment", "tiny", "run", "P", "-q", *bed.words), stdout=subprocess.PIPE, text=True
    ) as sweep:
        results = bed.env_dir / "results" / "tiny"
        wait_for(lambda: list(results.glob("*/1/result.json")), 60, "a result")
        before = {path: path.stat().st_mtime_ns for path in results.glob("*/1/result.json")}
        ports = {"producer": "PREFILL_PORT", "consumer": "DECODE_PORT", "proxy": "PROXY_PORT"}
        word = f"--port {bed.env[ports[name]]} "
        killed = [pid for pid, line in started_with(str(home)).items() if word in line.replace("\0", " ")]
        assert killed
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):  # with its parent
                os.kill(pid, signal.SIGKILL)
        shown, _ = sweep.communicate(timeout=200)
    assert (sweep.returncode, "2 of 2 measured" in shown) == (0, True), shown
    assert [path.stat().st_mtime_ns for path in before] == list(before.values())


def test_the_controller_killed_at_random_moments_changes_nothing(bed: Bed) -> None:
    chance = random.Random(seed := int(os.environ.get("TASKRUNNER_SEED", time.time_ns())))
    write()
    kills = 50 if WHOLE else 8
    seen: dict[Path, int] = {}
    for _ in range(kills):
        with subprocess.Popen(
            command("experiment", "tiny", "run", *bed.words),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as controller:
            time.sleep(chance.uniform(0.2, 1.5))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(controller.pid, signal.SIGKILL)
        for path in (bed.env_dir / "results/tiny").glob("*/*/result.json"):
            assert seen.setdefault(path, path.stat().st_ino) == path.stat().st_ino, seed
    done = bed.experiment("tiny", "run", "-q")
    assert (done.returncode, "8 of 8 measured" in done.stdout) == (0, True), (seed, done.stdout, done.stderr)
    assert all(path.stat().st_ino == inode for path, inode in seen.items()), seed
    assert len(bed.starts()) == 6, seed


def test_a_configuration_that_never_starts_leaves_the_list_and_the_command(bed: Bed) -> None:
    broken = json.loads(json.dumps(PLAN))
    broken["replicates"]["blocks"] = 1
    write(broken)
    (bed.faults / "consumer").write_text("refuse always")
    done = bed.experiment("tiny", "run", "-q")
    assert done.returncode == 1
    assert "2 of 4 measured" in done.stdout
    assert "taskrunner experiment tiny run pt-cpu-32-c1 pt-cpu-64-c1 --env" in done.stderr


def test_a_plan_that_is_edited_makes_old_results_those_of_another(bed: Bed) -> None:
    write({**PLAN, "replicates": {"blocks": 1}})
    assert bed.experiment("tiny", "run", "U", "-q").returncode == 0
    write(
        {**PLAN, "replicates": {"blocks": 1}, "common_settings": {**PLAN["common_settings"], "max_tokens": 5}}
    )
    status = bed.experiment("tiny", "status", "U")
    assert (status.returncode, status.stdout.count("of other servers, settings")) == (1, 2)
    assert bed.experiment("tiny", "run", "U", "-q").returncode == 0


TOOLS = {
    **PLAN,
    "layers": [
        *PLAN["layers"][:1],
        {
            "id": "Tools",
            "provider": "tcp",
            "patterns": [
                {"id": "info", "tool": "fi_info"},
                {"id": "ping", "tool": "fi_pingpong", "message_sizes": [64, "1K"], "iterations": 100},
                {"id": "smi", "tool": "nvidia-smi"},
                {"id": "never", "tool": "kvbench"},
            ],
        },
    ],
    "replicates": {"blocks": 1},
}


def test_tools_run_before_the_servers_and_once(bed: Bed) -> None:
    write(TOOLS)
    done = bed.experiment("tiny", "run", "-q")
    # There is no GPU, and no pack runs kvbench.
    assert done.returncode == 1
    assert "5 of 6 measured" in done.stdout, done.stdout + done.stderr
    assert "run smi --env" in done.stderr
    rows = {(row["pattern"], row["part"]): row for row in index()}
    assert rows["ping", "size-64"]["latency_us"] > 0
    assert rows["ping", "size-1K"]["valid"]
    assert rows["info", "once"]["valid"]
    assert "not run by a sweep: kvbench" in bed.experiment("tiny", "list").stdout
    stamps = {key: Path(row["path"]).stat().st_mtime_ns for key, row in rows.items() if row["valid"]}
    assert bed.experiment("tiny", "run", "-q").returncode == 1
    assert {key: Path(rows[key]["path"]).stat().st_mtime_ns for key in stamps} == stamps
    assert bed.starts() == ["unified"]


def test_results_of_other_settings_are_replaced_aloud_or_kept_on_request(bed: Bed) -> None:
    write()
    assert bed.experiment("tiny", "run", "U", "-q").returncode == 0
    kept = {row["path"]: Path(row["path"]).read_text() for row in index() if row["valid"]}
    assert len(kept) == 4
    settings = {**PLAN["common_settings"], "max_tokens": 5}
    write({**PLAN, "common_settings": settings})
    accepted = bed.experiment("tiny", "run", "U", "-q", "--accept-mixed")
    assert (accepted.returncode, "4 of 4 measured" in accepted.stdout) == (0, True), accepted.stderr
    assert {path: Path(path).read_text() for path in kept} == kept
    assert "4 results are" not in accepted.stderr
    status = bed.experiment("tiny", "status", "U")
    assert (status.returncode, "of other servers, settings" in status.stdout) == (1, True)
    again = bed.experiment("tiny", "run", "U", "-q")
    assert "4 results are of other servers or settings, and measured again" in again.stderr
    assert again.returncode == 0
    assert not any(Path(path).read_text() == text for path, text in kept.items())


def test_a_sweep_is_extended_by_blocks_and_stays_so(bed: Bed) -> None:
    write({**PLAN, "replicates": {"blocks": 1, "configurations": "all"}})
    assert bed.experiment("tiny", "run", "U", "--blocks", 2, "-q").returncode == 0
    assert len(bed.starts()) == 2
    done = bed.experiment("tiny", "status", "U")
    assert (done.returncode, "4 of 4 measured" in done.stdout) == (0, True), done.stdout
    assert bed.experiment("tiny", "extend", "--blocks", "+1", "-q").returncode == 0
    assert "12 of 12 measured" in bed.experiment("tiny", "status").stdout


def test_what_counts_goes_to_mlflow_and_into_one_table(bed: Bed, home: Path) -> None:
    write({**PLAN, "replicates": {"blocks": 1}, "mlflow_config": {"experiment_name": "tiny-mlflow"}})
    done = bed.experiment("tiny", "run", "U", "-q", "--mlflow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert bed.experiment("tiny", "collect", "--mlflow").returncode == 1  # of the whole plan half is there
    with contextlib.closing(sqlite3.connect(home / "tracking" / "mlflow.db")) as store:
        query = "select count(*) from runs join experiments using (experiment_id) where experiments.name = ?"
        assert store.execute(query, ["tiny-mlflow"]).fetchone() == (2,)
    table = pyarrow.parquet.read_table("results/tiny/results.parquet").to_pylist()
    assert [(row["pattern"], row["ttft_p50_ms"]) for row in table] == [
        (row["pattern"], row["ttft_p50_ms"]) for row in index()
    ]


def test_what_is_valid_is_measured_again_only_when_that_is_asked_for(bed: Bed) -> None:
    write({**PLAN, "replicates": {"blocks": 1}})
    assert bed.experiment("tiny", "run", "U", "-q").returncode == 0
    before = {row["path"]: json.loads(Path(row["path"]).read_text()) for row in index() if row["valid"]}
    failed = bed.experiment("tiny", "run", "U", "--only-failed")
    assert (failed.returncode, "nothing has failed" in failed.stderr) == (0, True)
    assert bed.experiment("tiny", "run", "U", "--rerun", "-q").returncode == 0
    for path, record in before.items():
        assert json.loads(Path(path).read_text())["metadata"]["began"] > record["metadata"]["began"]


def test_a_pilot_tells_how_much_starts_differ_and_the_plan_takes_it(bed: Bed) -> None:
    write({**PLAN, "comparisons": [{"id": "C", "a": {"backend": "unified"}, "b": {"backend": "cpu"}}]})
    assert "starts differ by 3.0%, as is assumed" in bed.experiment("tiny", "list").stdout
    done = bed.experiment("tiny", "run", "--pilot", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert bed.starts() == ["unified", "unified"]
    assert "found in four of five sweeps, roughly: 2 blocks" in done.stdout
    spread = max(json.loads(Path("results/tiny-pilot/spread.json").read_text()).values())
    shown = bed.experiment("tiny", "list").stdout
    assert f"starts differ by {spread:.1%}, as the pilot has found" in shown
    # It takes no measurement of the sweep away.
    assert not Path("results/tiny").exists()


def test_one_pattern_for_a_smoke_test(bed: Bed) -> None:
    write()
    done = bed.experiment(
        "tiny", "run", "pt-unified-32-c1", "--warmup", 1, "--iterations", 1, "--blocks", 1, "-q"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 measured" in done.stdout
    rows = [json.loads(line) for line in Path("results/tiny-w1-n1/index.jsonl").read_text().splitlines()]
    assert [row["completed"] for row in rows if row["pattern"] == "pt-unified-32-c1"] == [1]
    # A trial does not stand in the place of a measurement.
    assert not Path("results/tiny").exists()

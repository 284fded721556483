"""Plans: what they contain, where settings come from, in which order they run, and what cannot."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskrunner import packs
from taskrunner.errors import NotFoundError, TaskFileError, UsageError
from taskrunner.experiments import comparisons, durations, order, patterns, plan, slurm
from taskrunner.experiments.models import generate
from taskrunner.experiments.schedule import Limits, choose, schedule
from taskrunner.experiments.sweep.files import task_files
from tests.helpers import command, completed

TINY: dict[str, Any] = {
    "phase": "t",
    "infrastructure": {"model": "m"},
    "layers": [{"id": "U", "mode": "unified", "patterns": [{"id": "a", "prompt_tokens": 100}]}],
}


def write(data: dict[str, Any], name: str = "p.json") -> Path:
    Path(name).write_text(json.dumps(data, indent=1))
    return Path(name)


def test_the_committed_schema_is_that_of_the_models() -> None:
    assert json.loads(packs.schema_path("plan").read_text()) == generate()


@pytest.mark.parametrize(
    ("name", "patterns", "end_to_end", "starts"),
    [("phase1", 128, 73, 6), ("phase2", 92, 37, 18), ("phase15", 17, 13, 10), ("cpu-smoke", 4, 4, 4)],
)
def test_shipped_plans_need_no_more_starts_than_any_order(
    name: str, patterns: int, end_to_end: int, starts: int
) -> None:
    loaded = plan.load(name)
    planned = schedule(loaded)
    assert (len(loaded.patterns), len(loaded.end_to_end())) == (patterns, end_to_end)
    if name != "phase15":  # its longest prompts do not fit its GPU
        assert len(planned.starts) == starts
    assert planned.setup_minutes == planned.bound


def test_a_problem_of_an_included_plan_is_placed_where_it_stands() -> None:
    part = {
        "layers": [
            {
                "id": "V",
                "mode": "unified",
                "matrix": {"values": {"prompt_token": [1]}},
                "patterns": [{"id": "a", "prompt_tokens": 100}],
            }
        ]
    }
    write(part, "part.json")
    with pytest.raises(TaskFileError) as caught:
        plan.load(write({**TINY, "include": "part.json"}))
    lines = [str(problem) for problem in caught.value.problems]
    assert [line.split(": ")[0] for line in lines] == ["part.json:8:6", "part.json:14:5"]
    assert "unknown setting 'prompt_token'" in lines[0]
    assert "'a' is there twice" in lines[1]


def test_no_word_of_a_plan_is_a_command(tmp_path: Path) -> None:
    ping = {
        "id": "ping",
        "tool": "fi_pingpong",
        "provider": "efa; touch taken",
        "message_size": "$(touch taken)",
    }
    planned = schedule(plan.load(write({**TINY, "layers": [{"id": "T", "patterns": [ping]}]})))
    (file,) = task_files(planned).values()
    (command,) = next(step for step in file["tasks"] if step["id"].endswith("size-__touch_taken_"))[
        "commands"
    ]
    words = shlex.split(command)
    assert words[words.index("--provider") + 1] == "efa; touch taken"
    assert words[words.index("--size") + 1] == "$(touch taken)"


@pytest.mark.parametrize("options", [slurm.Options("gpu\ntouch x"), slurm.Options("", "", "1:00 --wrap=x")])
def test_no_option_of_slurm_is_a_line_of_the_script(options: slurm.Options) -> None:
    with pytest.raises(UsageError, match="only"):
        slurm.script("n", [["true"]], "log", ("a", "b"), options)


def test_phase2_has_48_patterns_and_44_that_run_only_when_they_are_named() -> None:
    loaded = plan.load("phase2")
    assert Counter(pattern.adhoc for pattern in loaded.patterns) == {False: 48, True: 44}
    assert len(choose(loaded, ["all"])) == 48
    assert len(choose(loaded, ["L5-LowLevel"])) == 44
    assert [one.id for one in choose(loaded, ["p2-ll-ucx-tag-lat-host-1m"])] == ["p2-ll-ucx-tag-lat-host-1m"]


def test_what_cannot_run_on_a_gpu_is_said_before_anything_is_paid_for() -> None:
    planned = schedule(plan.load("phase2", {"gpu_type": "L40S"}))
    impossible = [name for name, one in planned.verdicts.items() if not one.runs]
    assert sorted(impossible) == sorted(
        f"p2-{fabric}-{rest}" for fabric in ("efa", "tcp") for rest in ("64k-c1", "64k-c4", "128k-c1")
    )
    assert sum(one.queues for one in planned.verdicts.values()) == 12
    assert "48,848" in planned.verdicts["p2-efa-64k-c1"].why
    assert not {name for start in planned.starts for name in start.patterns} & set(impossible)


def test_matched_pairs_of_phase2() -> None:
    pairs = {one.id: len(one.pairs) for one in schedule(plan.load("phase2")).comparisons}
    assert pairs["CMP-01"] + pairs["CMP-02"] == 13
    assert (pairs["CMP-03"], pairs["CMP-04"]) == (8, 8)


def test_blocks_alternate_and_compared_configurations_are_side_by_side() -> None:
    planned = schedule(plan.load("phase2"))
    blocks = {
        number: [one.configuration.key for one in planned.starts if one.block == number]
        for number in (1, 2, 3)
    }
    assert blocks[1] == blocks[2][::-1] == blocks[3]
    first, second = planned.starts[0], next(one for one in planned.starts if one.block == 2)
    lengths = [planned.patterns[name].prompt_tokens for name in first.patterns]
    assert lengths == sorted(lengths)
    backwards = [planned.patterns[name].prompt_tokens for name in second.patterns]
    assert backwards == sorted(backwards, reverse=True)
    names = [one.configuration.variables["FABRIC"] for one in planned.starts[:3]]
    assert names == ["", "efa", "tcp"]


def test_only_what_is_compared_is_replicated() -> None:
    data = json.loads(json.dumps(TINY))
    data["layers"][0]["patterns"].append({"id": "b", "prompt_tokens": 100, "enforce_eager": True})
    data["layers"][0]["patterns"].append({"id": "c", "prompt_tokens": 100, "prefix_cache": True})
    data["replicates"] = {"blocks": 3}
    data["comparisons"] = [{"a": {"id": "a"}, "b": {"id": "b"}}]
    planned = schedule(plan.load(write(data)))
    counts = Counter(name for start in planned.starts for name in start.patterns)
    assert counts == {"a": 3, "b": 3, "c": 1}


def test_the_nearest_value_wins_and_is_known_by_where_it_stands() -> None:
    data = {
        **TINY,
        "common_settings": {"max_tokens": 10, "warmup_iterations": 2, "concurrency": 2},
        "layers": [
            {
                "id": "U",
                "mode": "unified",
                "max_tokens": 20,
                "vllm_config": {"gpu_memory_utilization": 0.5},
                "patterns": [{"id": "a", "prompt_tokens": 100, "concurrency": 7}],
            }
        ],
    }
    (pattern,) = plan.load(write(data)).patterns
    assert (pattern.max_tokens, pattern.origins["max_tokens"]) == (20, "layer")
    assert (pattern.warmup_iterations, pattern.origins["warmup_iterations"]) == (2, "plan")
    assert (pattern.concurrency, pattern.origins["concurrency"]) == (7, "pattern")
    assert (pattern.measurement_iterations, pattern.origins["measurement_iterations"]) == (30, "default")
    assert pattern.gpu_memory_utilization == 0.5
    shown = completed(command("plan", "show", "p.json", "a")).stdout
    assert "concurrency             7  (pattern)" in shown


def test_a_matrix_with_exclusions_and_overrides() -> None:
    matrix = {
        "values": {"prompt_tokens": [1024, 4096, 100000], "concurrency": [1, 4]},
        "exclude": [{"prompt_tokens": 100000, "concurrency": [2, 4]}],
        "override": [{"when": {"prompt_tokens": 4096}, "set": {"max_tokens": 5}}],
    }
    loaded = plan.load(write({**TINY, "layers": [{"id": "U", "mode": "unified", "matrix": matrix}]}))
    assert {one.id: one.max_tokens for one in loaded.patterns} == {
        "pt-unified-1k-c1": 128,
        "pt-unified-1k-c4": 128,
        "pt-unified-4k-c1": 5,
        "pt-unified-4k-c4": 5,
        "pt-unified-100k-c1": 128,
    }


OLDER = {
    "phase": 2,
    "name": "older",
    "description": "d",
    "created": "2025-01-01",
    "mlflow_config": {"experiment_name": "e", "timestamp_suffix": True},
    "infrastructure": {
        "instance_type": "g6e.12xlarge",
        "model": "Qwen/Qwen2.5-32B-Instruct",
        "gpu_type": "L40S",
        "tp_size": 4,
        "etcd_port": 2379,
    },
    "common_settings": {
        "max_tokens": 128,
        "warmup_iterations": 10,
        "measurement_iterations": 30,
        "gpu_memory_utilization": 0.9,
        "max_num_batched_tokens": 4096,
        "measurement_type": "online",
        "temperature": 0,
        "streaming": True,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "enforce_eager": True,
    },
    "prompt_lengths": {"standard": [1024], "long_context": {"tokens": [65536], "requires_yarn": True}},
    "concurrency_levels": [1, 4],
    "kv_cache_reference": {"bytes_per_token": 262144},
    "layers": [
        {
            "id": "L1-Unified",
            "name": "Unified",
            "priority": "P0",
            "estimated_time_minutes": 60,
            "vllm_config": {"mode": "unified"},
            "patterns": [
                {
                    "id": "p2-unified-1k-c1",
                    "mode": "unified",
                    "prompt_tokens": 1024,
                    "prompt_label": "1K",
                    "concurrency": 1,
                    "metrics": ["ttft"],
                }
            ],
        },
        {
            "id": "L2-EFA",
            "depends_on": ["L1-Unified"],
            "patterns": [
                {
                    "id": "p2-efa-1k-c1",
                    "mode": "disaggregated",
                    "transport": "efa",
                    "prompt_tokens": 1024,
                    "concurrency": 1,
                    "kv_buffer_size": 5e9,
                    "health_check_timeout": 900,
                }
            ],
        },
        {
            "id": "L5-LowLevel",
            "adhoc": True,
            "tool": "nixlbench",
            "patterns": [
                {
                    "id": "p2-ll-nixl",
                    "pattern_id": "LL-07",
                    "tool": "nixlbench",
                    "backend": "UCX",
                    "message_size": 268435456,
                    "iterations": 100,
                    "initiator_seg_type": "VRAM",
                    "target_seg_type": "VRAM",
                    "model_config": "x",
                }
            ],
        },
    ],
    "execution_order": ["L1-Unified", {"layer": "L2-EFA"}],
    "analysis_plan": {
        "cross_experiment_comparisons": [
            {
                "comparison_id": "CMP-03",
                "name": "n",
                "layers": ["L1-Unified", "L2-EFA"],
                "hypothesis": "h",
                "metrics": ["tpot"],
            }
        ]
    },
    "estimated_duration": {"total_hours": 10},
    "validation_targets": {"tpot": "<2ms"},
    "task_definition_paths": {"base": "x"},
    "generate_tasks_script": "generate.py",
}


def test_an_older_plan_loads_unchanged() -> None:
    planned = schedule(plan.load(write(OLDER)))
    assert [start.configuration.mode for start in planned.starts] == ["unified", "disaggregated"]
    assert planned.starts[1].configuration.variables["ENFORCE_EAGER"] == "true"
    (comparison,) = planned.comparisons
    assert (comparison.id, len(comparison.pairs)) == ("CMP-03", 1)
    tool = next(one for one in planned.plan.patterns if one.kind == patterns.TOOL)
    assert (tool.adhoc, tool.values["iterations"], "max_tokens" in tool.values) == (True, 100, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layerz": []}, 'unknown key "layerz"'),
        ({"layers": [{"id": "U", "patterns": [{"id": "a", "prompt_token": 1}]}]}, "prompt_tokens"),
        ({"layers": [{"id": "U", "patterns": [{"id": "a", "prompt_tokens": 0}]}]}, "prompt_tokens"),
        ({"layers": [{"id": "U", "patterns": [{"id": "a/b", "prompt_tokens": 1}]}]}, "a/b"),
        ({"layers": [{"id": "U", "patterns": [{"id": "a", "prompt_tokens": 1}] * 2}]}, "'a' is there twice"),
        (
            {"layers": [{"id": "U", "matrix": {"values": {"promt_tokens": [1]}}}]},
            "did you mean prompt_tokens",
        ),
        ({"layers": []}, "the plan has no patterns"),
        ({"include": "nowhere.json"}, "cannot include"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskFileError) as raised:
        plan.load(write({**TINY, **change}))
    message = str(raised.value)
    assert said in message
    assert message.startswith("p.json:")


def test_a_file_whose_name_cannot_be_that_of_results_is_refused() -> None:
    with pytest.raises(TaskFileError, match="cannot be the name of a plan"):
        plan.load(write(TINY, "my plan.json"))


def test_a_name_that_is_not_there_gets_the_nearest_one() -> None:
    with pytest.raises(NotFoundError) as raised:
        plan.load("phse2")
    assert "phase2" in raised.value.hint
    with pytest.raises(NotFoundError) as raised:
        choose(plan.load("phase2"), ["L2-EF"])
    assert "L2-EFA" in raised.value.hint


def test_what_the_command_line_says_counts() -> None:
    planned = schedule(plan.load("phase2"), ["p2-unified-1k-c16"], Limits(1, 2, 1))
    (start,) = planned.starts
    pattern = planned.patterns[start.patterns[0]]
    assert (planned.requests(pattern), planned.warmup(pattern)) == (2, 1)
    replicated = schedule(plan.load("phase2"), ["p2-unified-1k-c16"])
    assert replicated.requests(replicated.patterns["p2-unified-1k-c16"]) == 32


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_is_the_shortest_that_the_layers_allow(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    costs = {
        (last, one): data.draw(st.integers(0, 9)) for last in (None, *range(count)) for one in range(count)
    }
    before = {
        one: frozenset(other for other in range(one) if data.draw(st.booleans()) and data.draw(st.booleans()))
        for one in range(count)
    }

    def cost(last: int | None, one: int) -> float:
        return costs[last, one]

    found = order.shortest(count, cost, before)
    allowed = [list(each) for each in itertools.permutations(range(count)) if order._allowed(each, before)]
    best = min(order._total(each, cost) for each in allowed)
    assert found in allowed
    assert order._total(found, cost) == best
    assert order.lower_bound(count, cost) <= best
    moved = order._improved(count, cost, before)
    assert moved in allowed


def test_nixlbench_and_the_shape_that_kvbench_plans_are_run() -> None:
    low_level = plan.load("phase-low-level")
    words = {run.pattern.id: " ".join(run.words) for run in schedule(low_level, []).tool_runs}
    assert len(words) == len(low_level.patterns)
    assert "--backend LIBFABRIC" in words["pll-L1-nixlbench-libfabric-manytoone-c4"]
    assert "--threads 1 --initiators 4" in words["pll-L1-nixlbench-libfabric-manytoone-c4"]
    assert words["pll-L2-kvbench-ucx-4096"].startswith("kvbench-shape --token-bytes 57344 --tokens 4096 ")
    phase1 = plan.load("phase1")
    (one,) = schedule(phase1, ["p1-ll-nixlbench-ucx-pairwise-1k-c4"]).tool_runs
    assert "--memory cuda --threads 4 --initiators 1" in " ".join(one.words)


def test_what_can_be_detected_is_as_published() -> None:
    """Residual 3.5 % (restarts 3 %, and 30 requests with a CV of 10 %), six configurations, power 0.8."""
    spread = math.hypot(0.03, 0.10 / math.sqrt(30))
    for blocks, published in ((2, 0.123), (3, 0.089), (4, 0.074), (5, 0.065)):
        found = comparisons.detectable(blocks, 6, spread)
        assert found is not None
        assert math.log1p(found) == pytest.approx(published, abs=0.002)
    assert comparisons.detectable(1, 6) is None
    assert comparisons.quantile(0.975, 10) == pytest.approx(2.2281, abs=1e-4)


def test_show_says_why_each_start_is_needed() -> None:
    shown = completed(command("plan", "show", "phase2", "--infra", "gpu_type=L40S")).stdout
    assert "12 starts, 120 minutes (no order takes less than 120)" in shown
    assert "block 2 starts anew" in shown
    assert "6 cannot run:" in shown
    assert "12 will queue" in shown
    data = json.loads(completed(command("plan", "show", "phase2", "--json")).stdout)
    assert (len(data["starts"]), data["lower_bound_minutes"]) == (18, 180)


def test_plans_are_listed_validated_and_written_as_task_files() -> None:
    listed = completed(command("plan", "list", "--json"))
    assert {one["name"] for one in json.loads(listed.stdout)} == {path.stem for path in plan.shipped()}
    assert completed(command("plan", "validate", *(path.stem for path in plan.shipped()))).returncode == 0
    write({**TINY, "layers": []})
    assert completed(command("plan", "validate", "p.json")).returncode == 2
    assert completed(command("plan", "generate", "phase2", "-o", "sweep")).returncode == 0
    for node in ("node1", "node2"):
        assert completed(command("validate", f"sweep/phase2-{node}.json")).returncode == 0


def test_estimates_are_what_earlier_results_have_taken() -> None:
    path = write(
        {**TINY, "layers": [{**TINY["layers"][0], "matrix": {"values": {"prompt_tokens": [10, 20]}}}]}
    )
    folder = Path("results/p")
    folder.mkdir(parents=True)
    rows = [
        ("a", 1, 0, 60),
        ("pt-unified-10-c1", 1, 61, 91),
        ("a", 2, 271, 331),
        ("pt-unified-10-c1", 2, 332, 362),
    ]
    lines = [
        json.dumps(
            {
                "pattern": name,
                "start": start,
                "mode": "unified",
                "valid": True,
                "began": 1e9 + at,
                "ended": 1e9 + to,
            }
        )
        for name, start, at, to in rows
    ]
    # What is cut off, or does not count, is not taken.
    lines += [
        '{"pattern": "a", "start"',
        json.dumps({"pattern": "a", "start": 3, "mode": "unified", "valid": False}),
    ]
    (folder / "index.jsonl").write_text("\n".join(lines))
    planned = schedule(plan.load(path), measured=durations.read(folder))
    assert planned.starts[0].minutes == 3.0
    assert planned.minutes(planned.patterns["a"]) == 1.0
    assert planned.minutes(planned.patterns["pt-unified-10-c1"]) == pytest.approx(31 / 60)
    shown = completed(command("plan", "show", str(path))).stdout
    assert "1 starts, 3 minutes" in shown

"""Random task files: nothing but its own errors, and what is compiled is what is run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskrunner import LocalTransport, TaskFileError, compile, load, run, validate
from taskrunner.model.lint import lint

COMMANDS = st.sampled_from(
    [
        "true",
        "echo $A",
        "echo <<A>> >> out",
        "cat <<E",
        "x",
        "E",
        "false",
        "exit 0",
        "echo '",
        "{{B:q}}",
        "if",
        "(exit 3)",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["<<A>>", "{{Z}}", "30s", "\0"]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TASK = st.fixed_dictionaries(
    {"id": st.sampled_from(["a", "b", "c", "d", "e"]) | ANYTHING},
    optional={
        "commands": st.lists(COMMANDS | ANYTHING, max_size=4) | ANYTHING,
        "skip_if": st.sampled_from(["true", "false", "<<A>>", "("]) | ANYTHING,
        "when": st.dictionaries(st.sampled_from(["A", "Q"]), ANYTHING, max_size=2) | ANYTHING,
        "service": ANYTHING,
        "wait_for": ANYTHING,
        "retries": ANYTHING,
        "env": ANYTHING,
        "files": ANYTHING,
        "_comment": ANYTHING,
        "commandss": ANYTHING,
    },
)
FILE = st.fixed_dictionaries(
    {"tasks": st.lists(TASK, max_size=4) | ANYTHING},
    optional={
        "variables": st.dictionaries(st.sampled_from(["A", "B", "_c", "9"]), ANYTHING, max_size=3) | ANYTHING,
        "metadata": ANYTHING,
        "name": ANYTHING,
    },
)


def checked(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        path.write_bytes(data)
        problems = validate(path)
        for problem in problems:
            assert problem.line >= 1
            assert problem.message
        if not problems:
            compile(path, env=dict.fromkeys(_required(path), "x"))


def _required(path: Path) -> list[str]:
    variables = load(path).document.data.get("variables", {})
    return [name for name, value in variables.items() if not name.startswith("_")]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILE | ANYTHING)
def test_validation_raises_nothing_but_its_own_errors(data: Any) -> None:
    try:
        checked(json.dumps(data).encode())
    except TaskFileError:
        pass  # a value that was given may still not be one of its choices


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_so_it_is_with_random_bytes(data: bytes) -> None:
    checked(data)


GOOD = st.lists(
    st.fixed_dictionaries(
        {
            "commands": st.lists(
                st.sampled_from(["true", "echo x", "cd /", "exit 0", "Y=$A"]), min_size=1, max_size=3
            )
        },
        optional={
            "skip_if": st.sampled_from(["true", "false"]),
            "always": st.booleans(),
            "on_failure": st.sampled_from(["stop", "continue"]),
            "when": st.sampled_from([{"A": 1}, {"A": 2}]),
        },
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(GOOD, st.integers(0, 4), st.sampled_from(["all", "start", "until", "only"]), st.integers(-1, 4))
def test_what_is_compiled_is_what_is_run(
    tasks: list[dict[str, Any]], index: int, how: str, failing: int
) -> None:
    numbered: list[dict[str, Any]] = [{"id": f"s{number}", **task} for number, task in enumerate(tasks)]
    if 0 <= failing < len(numbered):
        numbered[failing]["commands"] = [*numbered[failing]["commands"], "false"]
        numbered[failing]["commands"] = [c for c in numbered[failing]["commands"] if c != "exit 0"]
    chosen = numbered[index % len(numbered)]["id"]
    options: dict[str, Any] = {} if how == "all" else {how: [chosen] if how == "only" else chosen}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        path.write_text(json.dumps({"variables": {"A": 1}, "tasks": numbered}))
        plan = compile(path, **options)
        events: list[Any] = []
        run(path, on_event=events.append, on=LocalTransport(Path(folder) / "state"), **options)
        assert not [problem for problem in lint(load(path).document) if problem.rule == ""]
    expected, stopped = [], False
    for step in plan["steps"]:
        task = numbered[step["index"]]
        if "skip" in step:
            expected.append((step["id"], "skipped"))
        elif stopped and not task.get("always"):
            continue
        elif task.get("skip_if") == "true":
            expected.append((step["id"], "skipped"))
        elif step["commands"][-1]["text"] == "false":
            expected.append((step["id"], "failed"))
            stopped = stopped or task.get("on_failure") != "continue"
        else:
            expected.append((step["id"], "ok"))
    ends = [
        (event["step"], event.get("status", "skipped"))
        for event in events
        if event["type"] in ("step.finished", "step.skipped")
    ]
    assert ends == expected

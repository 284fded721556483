from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from taskrunner import packs
from taskrunner.model import checks
from taskrunner.model.document import Document, accepted
from taskrunner.model.models import TaskFile, generate


def problems(data: object) -> list[str]:
    return [str(problem) for problem in checks.structure(Document("f", json.dumps(data)))]


def task(**members: object) -> dict[str, object]:
    return {"tasks": [{"id": "a", "commands": ["true"], **members}]}


def test_the_committed_schema_is_the_generated_one() -> None:
    assert json.loads(packs.schema_path().read_text()) == generate()


def test_the_schema_is_one_itself() -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(generate())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"tasks": [{"id": "a", "comands": []}]},
            'tasks[0].comands: unknown key "comands" in a task (did you mean commands?)',
        ),
        ({"tasks": [{"id": "a", "cmds": []}]}, "did you mean commands?"),
        ({"task": []}, 'unknown key "task" in the file (did you mean tasks?)'),
        ({"task": []}, '"tasks" is missing in the file'),
        ({"tasks": [{}]}, 'tasks[0]: "id" is missing in a task'),
        ({"tasks": {}}, "tasks: expected an array, got an object"),
        ([], "expected an object, got an array"),
        (task(commands="true"), 'tasks[0].commands: expected an array, got "true"'),
        (task(timeout="soon"), 'expected a duration: seconds, or "30s", "10m", "2h", got "soon"'),
        (task(timeout=0), "expected more than 0, got 0"),
        (task(timeout=[]), "expected a number or a string, got an array"),
        (task(on_failure="stopp"), 'expected "stop" or "continue", got "stopp", did you mean stop?'),
        (task(retries={"attempts": 0}), "tasks[0].retries.attempts: expected at least 1, got 0"),
        (task(retries={}), '"attempts" is missing in "retries"'),
        (task(env={"A B": "x"}), '"A B" is not a name'),
        (task(id=""), "expected one line of text"),
        (task(commands=["a\0b"]), "text without NUL characters"),
        ({"variables": {"9x": 1}, "tasks": []}, 'variables.9x: "9x" is not a name'),
        ({"variables": {"A": {"defualt": 1}}, "tasks": []}, "did you mean default?"),
        ({"variables": {"A": [1]}, "tasks": []}, "variables.A: expected"),
    ],
)
def test_says_what_was_expected(data: object, says: str) -> None:
    assert any(says in problem for problem in problems(data)), problems(data)


def test_members_that_start_with_an_underscore_are_comments_anywhere() -> None:
    data = {
        "_why": 1,
        "metadata": {"_x": []},
        "variables": {"_note": {"any": "thing"}, "A": {"_x": 1, "default": 2}},
        "tasks": [{"id": "a", "_todo": None, "commands": [], "retries": {"_": 1, "attempts": 1}}],
    }
    assert problems(data) == []
    TaskFile.model_validate(data)


def test_all_errors_at_once() -> None:
    assert len(problems({"x": 1, "tasks": [{"id": True}, {"commands": 2}, {"id": "c", "y": 3}]})) == 5


def test_a_line_break_at_the_end_of_a_name_is_one_too_many() -> None:
    assert len(problems({"tasks": [{"id": "a\n"}], "variables": {"A\n": "x"}})) == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 99) | st.sampled_from(["", "a", "30s", "stop", "x\n"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["id", "commands", "name", "timeout", "attempts", "env", "_c", "default", "http"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
MEMBERS = list(generate()["$defs"]["Task"]["properties"])


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*MEMBERS, "nope", "_x"]), VALUES, max_size=4))
def test_the_schema_and_the_types_agree(members: dict[str, object]) -> None:
    data = {"tasks": [{"id": "a", **members}]}
    try:
        TaskFile.model_validate(accepted(data), strict=True)
        typed = True
    except ValidationError:
        typed = False
    allowed = not problems(data)
    if allowed != typed:
        # The schema has no null, and pydantic's strict floats are integers too: both on purpose.
        assert None in _leaves(members)


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]

"""One definition in one place: `include` and `extends`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import TaskFileError, compile, load, run, validate
from taskrunner.model.document import Document
from taskrunner.model.lint import lint

Write = Callable[..., Path]
SHARED = {
    "variables": {
        "PORT": {"default": 8100, "description": "Of the server"},
        "HOST": "node<<N>>",
        "N": 1,
        "OTHER": 2,
    },
    "services": {
        "base": {"fail_on": ["boom"], "stop_timeout": "1s"},
        "web": {
            "extends": "base",
            "name": "web",
            "command": "echo <<HOST>>:<<PORT>>; exec sleep 60",
            "ready": {"log": "node"},
        },
    },
    "steps": {
        "measure": {
            "name": "Measure",
            "commands": ["cat data", "exit $CODE"],
            "files": [{"from": "data", "to": "data"}],
        },
        "serve": {"service": {"extends": "web", "env": {"A": 1}}},
    },
}


def files(**content: Any) -> None:
    """Write JSON files; `__` in a name is a slash."""
    for name, data in content.items():
        path = Path(name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1))


def problems(file: str = "main.json") -> list[str]:
    return [str(problem) for problem in validate(file)]


def test_services_steps_and_variables_of_another_file(home: Path) -> None:
    main = {
        "include": "lib/shared.json",
        "variables": {"PORT": 9000, "CODE": 0},
        "tasks": [
            {"id": "a", "extends": "serve"},
            {"id": "b", "extends": "measure", "name": "Mine"},
            {"id": "c", "service": {"name": "web", "state": "stopped"}},
        ],
    }
    files(main=main, lib__shared=SHARED)
    Path("lib/data").write_text("from beside the shared file\n")
    plan = compile("main.json")
    assert plan["variables"] == {"PORT": "9000", "CODE": "0", "HOST": "node1", "N": "1"}
    assert [step["name"] for step in plan["steps"]] == ["a", "Mine", "c"]
    service = plan["steps"][0]["service"]
    assert (service["command"], service["fail_on"]) == ("echo node1:9000; exec sleep 60", ["boom"])
    assert service["env"] == {"A": "1"}
    result = run("main.json", check=True)
    assert (result.status, result.ok) == ("ok", 3)
    assert Path("data").read_text() == "from beside the shared file\n"
    assert lint(load("main.json").document) != []  # it has steps without a guard, and they are found


def test_a_variable_has_the_members_that_the_file_gives_and_those_of_the_included_one() -> None:
    main = {
        "include": ["shared.json"],
        "variables": {"PORT": {"default": 1}},
        "tasks": [{"id": "a", "commands": ["echo $PORT"]}],
    }
    files(main=main, shared=SHARED)
    assert load("main.json").document.data["variables"] == {
        "PORT": {"default": 1, "description": "Of the server"}
    }


def test_what_is_included_is_part_of_what_a_step_is() -> None:
    step = {"id": "a", "skip_if": "", "extends": "s"}
    for text in ("echo one", "echo two"):
        files(main={"include": "shared.json", "tasks": [step]}, shared={"steps": {"s": {"commands": [text]}}})
        assert run("main.json").ok == 1
        assert run("main.json").skipped == 1


def test_a_failure_is_shown_where_it_is_written(cli: Callable[..., Any]) -> None:
    files(
        main={"include": "lib/shared.json", "tasks": [{"id": "a", "extends": "s"}]},
        lib__shared={"steps": {"s": {"commands": ["true", "false"]}}},
    )
    assert "lib/shared.json:6: false" in cli("main.json").stdout


def test_files_that_include_others_and_one_that_two_include() -> None:
    files(
        main={
            "include": ["a.json", "deep/b.json"],
            "tasks": [{"id": "x", "extends": "a"}, {"id": "y", "extends": "b"}],
        },
        a={"include": "deep/c.json", "steps": {"a": {"extends": "c", "name": "A"}}},
        deep__b={"include": "./c.json", "steps": {"b": {"extends": "c", "name": "B"}}},
        deep__c={"steps": {"c": {"commands": ["echo c"]}}},
    )
    assert [step["commands"][0]["text"] for step in compile("main.json")["steps"]] == ["echo c", "echo c"]


@pytest.mark.parametrize(
    ("main", "shared", "said"),
    [
        (
            {"include": "none.json"},
            {},
            "main.json:2:13: include: cannot include none.json: No such file or directory",
        ),
        (
            {"include": ["shared.json"]},
            {"include": "shared.json"},
            "shared.json:2:13: include: circular include: shared.json > shared.json",
        ),
        (
            {"include": "shared.json"},
            {"include": "main.json"},
            "shared.json:2:13: include: circular include: main.json > shared.json > main.json",
        ),
        (
            {"include": "shared.json"},
            {"tasks": []},
            "shared.json:2:2: tasks: an included file cannot have tasks (move shared parts into its services and steps)",
        ),
        ({"include": "shared.json"}, [], "shared.json:1:1: expected an object"),
        (
            {"include": "shared.json"},
            {"stepz": {}},
            'shared.json:2:2: stepz: unknown key "stepz" in the file (did you mean steps?)',
        ),
        (
            {"include": "shared.json"},
            {"steps": {"s": {"comands": []}}},
            'shared.json:4:4: steps.s.comands: unknown key "comands" in a step (did you mean commands?)',
        ),
        ({"include": "shared.json"}, {"services": {"s": {"extends": "s"}}}, ""),
        (
            {"steps": {"s": {"extends": "s"}}, "tasks": [{"id": "a", "extends": "s"}]},
            {},
            "main.json:4:15: steps.s.extends: circular extends: s > s",
        ),
        (
            {"include": "shared.json", "services": {"s": {}}},
            {"services": {"s": {}}},
            "shared.json:3:3: services.s: s is also defined in main.json:4 (rename one of them)",
        ),
        (
            {"tasks": [{"id": "a", "extends": "x"}]},
            {},
            "main.json:5:15: tasks[0].extends: no step 'x' to extend (defined: none)",
        ),
        (
            {"tasks": [{"id": "a", "service": {"extends": 5}}]},
            {},
            "main.json:6:16: tasks[0].service.extends: expected a string, got 5",
        ),
        (
            {"tasks": [{"id": "a", "service": {}}]},
            {},
            'main.json:5:15: tasks[0].service: "name" is missing in "service"',
        ),
        ({"include": 5}, {}, "main.json:2:13: include: expected"),
    ],
)
def test_mistakes_are_told_with_the_place_where_they_are(
    main: dict[str, Any], shared: Any, said: str
) -> None:
    files(main={**main, "tasks": main.get("tasks", [{"id": "a", "commands": ["true"]}])}, shared=shared)
    found = problems()
    assert found == [] if not said else found[0].startswith(said), found


def test_a_file_without_tasks_can_only_be_included() -> None:
    files(shared=SHARED)
    assert problems("shared.json") == [
        'shared.json:1:1: "tasks" is missing in the file (a file without tasks can only be included)'
    ]


def test_a_file_that_was_found_valid_is_looked_at_again_when_what_it_includes_has_changed() -> None:
    main = {"include": "shared.json", "tasks": [{"id": "a", "extends": "s"}]}
    files(main=main, shared={"steps": {"s": {"commands": ["true"]}}})
    assert compile("main.json")
    files(shared={"steps": {"s": {"commands": ["if"]}}})
    with pytest.raises(TaskFileError, match="not valid bash"):
        compile("main.json")


def test_many_files_are_too_many() -> None:
    for number in range(100):
        files(**{f"f{number}": {"include": f"f{number + 1}.json"}})
    files(main={"include": "f0.json", "tasks": []})
    assert "more than 64 files are included" in problems()[0]


def test_what_would_take_very_much_is_refused() -> None:
    shared = {"steps": {"s": {"commands": ["x" * 900_000]}}}
    files(
        main={"include": "shared.json", "tasks": [{"id": str(n), "extends": "s"} for n in range(10_000)]},
        shared=shared,
    )
    assert "the file is larger than 16 MiB" in problems()[0]
    Path("shared.json").write_text(" " * 2_000_000)
    assert "shared.json is not a file of at most 1 MiB" in problems()[0]
    files(main={"include": "/dev/zero", "tasks": []})
    assert "/dev/zero is not a file of at most 1 MiB" in problems()[0]


def test_a_document_without_any_of_it_is_not_touched() -> None:
    document = Document("t.json", '{"tasks": [{"id": "a"}]}')
    assert not document.shares

"""Rules that hold the house together: who imports whom, and what is loaded at start."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import taskrunner

PACKAGE = Path(taskrunner.__file__).parent
LEVELS = [
    ["cli"],
    ["experiments"],
    ["report"],
    ["analysis"],
    ["fleet"],
    ["api"],
    ["history", "runs"],
    ["tracking"],
    ["transports"],
    ["aws"],
    ["model", "events"],
    ["packs", "log"],
    ["engine", "errors", "inference", "_version", "_lazy"],
]
"""A room may import from its own level and from those below."""
ENGINE = [["main"], ["node"], ["run"], ["store", "plan"]]
"""The same within the engine."""
INFERENCE = [
    ["node"],
    ["neuron", "sweep"],
    ["bench", "tools", "tune"],
    ["circumstances", "proxy", "serving"],
    ["results"],
    ["http_client"],
    ["write_now"],
    ["endpoint", "nvidia_smi", "options", "output"],
]
"""The same within inference."""


def imports(path: Path) -> set[str]:
    """The modules that a file imports, by their full names; those for type checkers left out."""
    found: set[str] = set()
    package = [*path.relative_to(PACKAGE.parent).with_suffix("").parts][:-1]

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                visit(node.orelse)
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                found.add(module)
                found.update(f"{module}.{alias.name}" for alias in node.names)
            for field in ("body", "orelse", "finalbody"):
                visit([item for item in getattr(node, field, []) if isinstance(item, ast.stmt)])
            for handler in getattr(node, "handlers", []):
                visit(handler.body)

    visit(ast.parse(path.read_text()).body)
    return found


def level(name: str, levels: list[list[str]]) -> int | None:
    return next((number for number, rooms in enumerate(levels) if name in rooms), None)


def modules() -> dict[str, Path]:
    """All modules of the package, by their full names."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_every_room_has_a_level() -> None:
    for folder, levels in (
        (PACKAGE, LEVELS),
        (PACKAGE / "engine", ENGINE),
        (PACKAGE / "inference", INFERENCE),
    ):
        rooms = {path.relative_to(folder).with_suffix("").parts[0] for path in folder.rglob("*.py")}
        assert {room for room in rooms if level(room, levels) is None} <= {"__init__", "__main__"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    graph = {name: imports(path) & known.keys() - {name} for name, path in known.items()}
    while leaves := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    while roots := graph.keys() - set().union(*graph.values()):
        graph = {name: needs for name, needs in graph.items() if name not in roots}
    assert graph == {}


def test_modules_are_small() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [str(path) for path, count in lines.items() if count > 400] == []
    assert statistics.median(lines.values()) < 130


@pytest.mark.parametrize(
    ("package", "levels"),
    [("taskrunner", LEVELS), ("taskrunner.engine", ENGINE), ("taskrunner.inference", INFERENCE)],
)
def test_imports_point_one_way(package: str, levels: list[list[str]]) -> None:
    wrong = []
    for name, path in modules().items():
        if not name.startswith(package + "."):
            continue
        own = level(name[len(package) + 1 :].split(".")[0], levels)
        for module in imports(path):
            if own is not None and module.startswith(package + "."):
                other = level(module[len(package) + 1 :].split(".")[0], levels)
                if other is not None and other < own:
                    wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_the_engine_uses_the_standard_library_and_itself_only() -> None:
    for path in (PACKAGE / "engine").rglob("*.py"):
        for module in imports(path):
            top = module.split(".")[0]
            assert module.startswith("taskrunner.engine") or top in sys.stdlib_module_names, (path, module)


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "engine").rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_engine_keeps_to_the_syntax_of_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


def loaded(*args: str) -> set[str]:
    """The top-level modules that a command line of taskrunner has loaded."""
    code = (
        "import sys, io; from taskrunner.cli.main import main; out = sys.stdout; sys.stdout = io.StringIO();"
        f" main({list(args)!r}); print(*sys.modules, file=out)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


HEAVY = {
    "pydantic",
    "jsonschema",
    "rich",
    "shtab",
    "asyncio",
    "logging",
    "unittest",
    "http",
    "ssl",
    "dataclasses",
    "inspect",
}
AT_START = set(
    "taskrunner argparse ast bisect contextlib copyreg enum functools gettext importlib io json keyword locale"
    " operator re reprlib types typing warnings collections errno __future__ itertools gc sre_compile sre_constants sre_parse".split()
).union(
    [
        "_ast",
        "_bisect",
        "_collections",
        "_functools",
        "_json",
        "_locale",
        "_operator",
        "_sre",
        "_struct",
        "_typing",
        "math",
    ]
)
"""What `taskrunner --version` may load, besides what Python itself has loaded by then."""


def test_what_may_be_loaded_at_start() -> None:
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    already = {name.split(".")[0] for name in bare.stdout.split()} | {"__main__", "io"}
    assert loaded("--version") - already <= AT_START


def test_a_file_that_was_checked_before_is_run_without_the_checkers(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"tasks": [{"id": "a", "skip_if": "false", "commands": ["true"]}]}')
    assert "jsonschema" in loaded(str(path))
    assert not loaded(str(path)) & HEAVY


def test_everything_public_can_be_had() -> None:
    for name in taskrunner.__all__:
        assert getattr(taskrunner, name) is not None
    assert "run" in dir(taskrunner)
    with pytest.raises(AttributeError):
        taskrunner.nothing  # noqa: B018


def test_what_runs_with_vllm_on_nodes_imports_nothing_of_ours() -> None:
    for path in (PACKAGE / "inference").rglob("*.py"):
        for module in imports(path):
            assert not module.startswith("taskrunner.") or module.startswith("taskrunner.inference"), (
                path,
                module,
            )

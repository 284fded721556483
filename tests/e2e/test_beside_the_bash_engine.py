"""Task files as users have them, run beside a stand-in for the bash engine: what is there at the end is compared by rules.

The rules: what is asked for is there; a run does what is not done, and every later unguarded step with it; nothing else
runs; no server is started beside another, and none is left that a whole run of the bash engine would have ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from taskrunner import run
from tests.e2e.bash_engine_files import KINDS, TOKEN, Kind, step
from tests.helpers import command, started

STAND_IN = r"""
FROM=$1
step() {
    [[ -z $FROM || $1 == "$FROM" ]] || return 0
    FROM=
    if [[ -n $2 ]] && eval "$2"; then echo "[SKIP] $1"; return 0; fi
    for COMMAND in "${@:3}"; do
        eval "$COMMAND" || { echo "[FAIL] $1"; exit 1; }
    done
}
"""
SERVER = '#!/bin/bash\necho "$STEP $$" >> "$STARTS"\nexec -a "$0" sleep 600\n'
KNOWN: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("here-document", "here-string", "backslash"), ("once again broken", "each runs alone")),
    "empty-guard": ("once again broken", "a blank guard holds"),
    "carried-over": ("once again broken", "cd reaches into the next step, and into guards"),
    "exit-0": ("once again broken undone", "exit ends the run"),
    **dict.fromkeys(("measured", "half-way"), ("again broken", "it starts a server again, beside the first")),
    "by-hand": ("again broken", "it appends again"),
}
"""In which scenarios the stand-in is wrong itself, so that the difference to it is right."""


class End(NamedTuple):
    """What can be seen of a world: whether the run succeeded, the files, and the servers' number."""

    well: bool
    files: dict[str, str]
    servers: int


class World:
    """A task file of a kind in a folder of its own, with what it starts found by a variable of its own."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.word, self.kind = f"w{uuid.uuid4().hex[:12]}", kind
        self.work, self.aside = folder / "work", folder / "aside"
        self.work.mkdir(parents=True)
        self.ledger, self.broken, self.starts = (self.aside / name for name in ("ledger", "broken", "starts"))
        server = self.aside / "bin" / self.word
        server.parent.mkdir(parents=True)
        server.write_text(SERVER)
        server.chmod(0o755)
        self.env = {
            "PATH": f"{server.parent}:{os.environ['PATH']}",
            "STARTS": str(self.starts),
            "BESIDE_WORLD": self.word,
            "BESIDE_TOKEN": TOKEN,
        }
        self.tasks: list[dict[str, Any]] = json.loads(json.dumps(kind.tasks).replace("WORD", self.word))
        for index, task in enumerate(self.tasks):
            if index == kind.fails[0]:
                task["commands"].insert(kind.fails[1], f"[ ! -e {self.broken} ]")
            if task["commands"]:
                task["commands"].insert(0, f"export STEP={index}; echo {index} >> {self.ledger}")
        self.guards = [(task.get("skip_if") or "").strip() for task in self.tasks]
        self.path = self.aside / "tasks.json"
        self.path.write_text(json.dumps({"name": "Beside", **kind.members, "tasks": self.tasks}))
        self.pids: set[int] = set()

    def filled(self, text: str) -> str:
        """The text with the variables' values in the place of their templates."""
        for name, value in list(self.kind.members.get("variables", {}).items()) * 2:
            value = self.env.get(name, "") if isinstance(value, dict) else str(value)
            text = text.replace(f"{{{{{name}}}}}", value).replace(f"<<{name}>>", value)
        return text

    def stand_in(self, start: str = "") -> bool:
        script = self.aside / "engine.sh"
        texts = [[str(task["id"]), task.get("skip_if") or "", *task["commands"]] for task in self.tasks]
        script.write_text(STAND_IN + "".join(f"step {shlex.join(map(self.filled, own))}\n" for own in texts))
        return self.process(["bash", str(script), start])

    def taskrunner(self, start: str = "") -> bool:
        if start:
            return self.process(command(self.path, "--from", start))
        with pytest.MonkeyPatch.context() as patched:
            for name, value in self.env.items():
                patched.setenv(name, value)
            return run(self.path, cwd=self.work).status == "ok"

    def shell(self, text: str) -> bool:
        """Run a text as bash's input, so that no command line holds it."""
        return self.process(["bash"], self.filled(text).replace("WORD", self.word))

    def process(self, argv: list[str], text: str = "") -> bool:
        with (self.aside / "output").open("ab") as out:
            options: Any = {"cwd": self.work, "env": {**os.environ, **self.env}, "stdout": out, "stderr": out}
            return not subprocess.run(argv, input=text, text=True, timeout=30, **options).returncode

    def servers(self) -> int:
        """How many servers run, once nothing else does, and those that were ended are gone."""
        if "WORD" not in repr(self.kind.tasks):
            return 0  # none is ever started; that nothing else is left, the fixture `home` finds
        deadline, before = time.monotonic() + 3, None
        while True:
            found = started(f"BESIDE_WORLD={self.word}")
            found = {pid: line for pid, line in found.items() if "engine.main" not in line}
            self.pids.update(found, (pid for _, pid in self.started()))
            others = {pid: line for pid, line in found.items() if not line.startswith(f"{self.aside}/bin/")}
            for pid in self.pids - set(found):
                with contextlib.suppress(ChildProcessError):  # ours by adoption
                    if os.waitpid(pid, os.WNOHANG)[0] == 0:
                        others[pid] = "on its way out"
            if not others and found in ({}, before):
                return len(found)
            assert time.monotonic() < deadline, f"left running: {others}"
            before = found
            time.sleep(0.02)

    def started(self) -> list[tuple[int, int]]:
        """The step and the process of every server that was started."""
        lines = self.starts.read_text().splitlines() if self.starts.exists() else []
        return [(int(index), int(pid)) for index, pid in map(str.split, lines)]

    def end(self, well: bool) -> End:
        servers, files = self.servers(), {}
        for path in self.work.rglob("*"):
            if path.is_file() and path.name != "log":
                name, text = str(path.relative_to(self.work)), path.read_text()
                files[name] = "PID" if name in ("pid", "up") and text[:-1].isdigit() else text
        return End(well, files, servers)

    def ran(self) -> list[int]:
        """The steps that have run since this was asked the last time."""
        text = self.ledger.read_text() if self.ledger.exists() else ""
        self.ledger.unlink(missing_ok=True)
        return [int(line) for line in text.split()]

    def first(self, done: int) -> int | None:
        """The first step that has to run, when of the unguarded ones all before the step `done` are done."""
        for index, (task, guard) in enumerate(zip(self.tasks, self.guards, strict=True)):
            if task["commands"] and not (self.shell(guard) if guard else index < done):
                return index
        return None


Worlds = Callable[[str], tuple[World, World]]


@pytest.fixture(scope="module", autouse=True)
def _adopted() -> Iterator[None]:
    """What outlives its parent becomes a child of this process, which collects it at once: not every init does."""
    prctl, subreaper = ctypes.CDLL(None).prctl, 36
    prctl(subreaper, 1, 0, 0, 0)
    yield
    prctl(subreaper, 0, 0, 0, 0)


@pytest.fixture
def worlds(tmp_path: Path, home: Path) -> Iterator[Worlds]:
    """Two worlds of a kind: for taskrunner, and for the stand-in."""
    made: list[World] = []

    def worlds(name: str) -> tuple[World, World]:
        made.extend(World(tmp_path / side, KINDS[name]) for side in ("ours", "theirs"))
        return made[0], made[1]

    yield worlds
    for world in made:
        for pid in started(f"BESIDE_WORLD={world.word}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        world.servers()


def runs(ours: World, done: int, fails: bool = False) -> End:
    """Run taskrunner, and hold it to the rules; returns what is there then."""
    kind, first, known = ours.kind, ours.first(done), len(ours.started())
    end, ran = ours.end(ours.taskrunner()), ours.ran()
    last = kind.fails[0] if fails else len(ours.tasks) - 1
    later = [] if first is None else range(first, last + 1)
    due = {index for index in later if ours.tasks[index]["commands"] and not ours.guards[index]}
    assert end.well is not fails
    assert ran == sorted(set(ran)), "a step ran twice"
    assert ran[:1] == [first] * (first is not None), "the run begins at the first step that is not done"
    assert due <= set(ran), "every unguarded step behind one that runs is run again"
    assert end.servers <= 1, "a server runs beside another"
    begun = ours.started()[known:]
    assert len(begun) <= 1, "a server was started twice"
    if fails:
        left = [pid for index, pid in begun if index == last and Path(f"/proc/{pid}").exists()]
        assert not left, "a failed step leaves its server"
    elif first is not None:
        wanted = {name: end.files.get(name) if text is None else text for name, text in kind.made.items()}
        assert {**end.files, **wanted} == end.files
        assert end.servers == kind.up
    return end


def compare(name: str, scenario: str, ours: End, theirs: End) -> None:
    """The ends are the same, or the stand-in's is known to be wrong."""
    if scenario in KNOWN.get(name, ("", ""))[0].split():
        assert ours != theirs, "the stand-in is right here: take it out of KNOWN"
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", KINDS)
def test_once_and_again(name: str, worlds: Worlds) -> None:
    ours, theirs = worlds(name)
    compare(name, "once", runs(ours, 0), theirs.end(theirs.stand_in()))
    compare(name, "again", runs(ours, len(ours.tasks)), theirs.end(theirs.stand_in()))


def break_and_repair(ours: World, theirs: World, done: int) -> tuple[End, End]:
    """Let a step fail, repair what it fails of, and run the same again; both ends."""
    for world in (ours, theirs):
        world.broken.touch()
    runs(ours, done, fails=True)
    assert not theirs.stand_in()
    for world in (ours, theirs):
        world.servers()
        world.broken.unlink()
    return runs(ours, ours.kind.fails[0]), theirs.end(theirs.stand_in())


@pytest.mark.parametrize("name", KINDS)
def test_broken_and_repaired(name: str, worlds: Worlds) -> None:
    ours, theirs = worlds(name)
    compare(name, "broken", *break_and_repair(ours, theirs, 0))
    runs(ours, len(ours.tasks))


def undone(name: str, worlds: Worlds) -> tuple[World, World]:
    """Two worlds in which the file has run, and a part is undone."""
    ours, theirs = worlds(name)
    runs(ours, 0)
    theirs.stand_in()
    for world in (ours, theirs):
        world.servers()
        world.shell(world.kind.undo)
        world.servers()
    return ours, theirs


@pytest.mark.parametrize("name", KINDS)
def test_partly_undone(name: str, worlds: Worlds) -> None:
    """Where no guard tells of it, nothing runs: then the stand-in, which repeats what has none, is no measure."""
    ours, theirs = undone(name, worlds)
    seen, before = ours.first(len(ours.tasks)) is not None, ours.end(True)
    end = runs(ours, len(ours.tasks))
    if seen:
        compare(name, "undone", end, theirs.end(theirs.stand_in()))
    else:
        assert end == before


@pytest.mark.parametrize(
    "name",
    [
        "install",
        "guarded-server",
        "pid-file",
        "guard-by-pattern",
        "middle-guard",
        "numeric-ids",
        "restart",
        "file-deleted",
        "download",
    ],
)
def test_undone_then_broken_then_repaired(name: str, worlds: Worlds) -> None:
    """What ran before the failure has made undone what comes behind it, also for the next run."""
    ours, theirs = undone(name, worlds)
    compare(name, "undone", *break_and_repair(ours, theirs, len(ours.tasks)))


@pytest.mark.parametrize("name", ["numeric-ids", "middle-guard", "by-hand", "restart"])
def test_resumed_from_the_step_that_failed(name: str, worlds: Worlds) -> None:
    ends, (ours, theirs) = [], worlds(name)
    fails = ours.kind.fails[0]
    for world, go in ((ours, ours.taskrunner), (theirs, theirs.stand_in)):
        world.broken.touch()
        assert not go()
        world.servers()
        world.ran()
        world.broken.unlink()
        ends.append(world.end(go(str(world.tasks[fails]["id"]))))
        assert world.ran() == list(range(fails, len(world.tasks)))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("of", ["steps", "services"])
def test_no_command_line_of_ours_holds_text_of_the_file(of: str, write: Callable[..., Path]) -> None:
    word = f"w{uuid.uuid4().hex[:12]}"
    look = "sleep 0.2; cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' ' >> seen"
    steps = [
        step(f"look-{word}", look, skip_if=f": {word}; {look}; false", name=f"Look at {word}"),
        step(f"more-{word}", look, f": {word}", env={"X": word}),
    ]
    services = [
        {"id": "serve", "service": {"name": f"web-{word}", "command": "sleep 600 & wait"}},
        step("look", look),
        {"id": "end", "always": True, "service": {"name": f"web-{word}", "state": "stopped"}},
    ]
    path = write(*(steps if of == "steps" else services), name=f"Of {word}", variables={"V": word})
    assert run(path).status == "ok"
    seen = Path("seen").read_text()
    assert "engine.main" in seen
    assert [seen[max(at.start() - 80, 0) : at.end()] for at in re.finditer(word, seen)] == []

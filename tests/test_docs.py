"""What the documents show is what happens."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from taskrunner import load, packs, validate
from tests.helpers import Process, command, completed
from tests.sshd import Sshd
from tests.terminal import Terminal

ROOT = Path(__file__).parent.parent


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_library_run(capsys: pytest.CaptureFixture[str], sshd: Sshd) -> None:
    namespace: dict[str, object] = {"__name__": "docs", "NODE": sshd.target}
    Path("nodes.toml").write_text(
        f'[nodes.node1]\naddress = "127.0.0.1"\nport = {sshd.port}\nuser = "{sshd.user}"\n'
    )
    for number, block in enumerate(blocks("docs/library.md", "python")):
        exec(compile(block, f"docs/library.md, example {number + 1}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "02-count 12" in printed
    assert "node1 ok 2 skipped" in printed
    assert Path("from-the-node").read_text() == "hello world\n"
    assert 'broken.json:1:24: tasks[0].comands: unknown key "comands" in a task (did you mean' in printed


@pytest.mark.slow
def test_the_examples_of_the_library_have_right_types(tmp_path: Path) -> None:
    imports = ""
    for number, block in enumerate(blocks("docs/library.md", "python")):
        (tmp_path / f"example{number + 1}.py").write_text(f'{imports}NODE = ""\n{block}')
        imports += "".join(f"{line}\n" for line in re.findall("^(?:from|import) .*", block, re.MULTILINE))
    checked = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-incremental",
        *map(str, sorted(tmp_path.glob("example*.py"))),
    ]
    done = completed(checked, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["README.md", "docs/task-files.md"])
def test_the_task_files_that_are_shown_are_valid(name: str, tmp_path: Path) -> None:
    shown = blocks(name, "json")
    assert shown
    for number, block in enumerate(shown):
        path = tmp_path / f"{number}.json"
        path.write_text(block)
        assert validate(path) == []


def test_the_mistakes_in_the_readme(cli: Callable[..., Process]) -> None:
    (good,) = blocks("README.md", "json")
    (shown,) = blocks("README.md", "text")
    Path("tasks").mkdir()
    bad = good.replace('"commands"', '"comands"').replace("-v <<PACKAGE>>", "-v <<PACKGE>>")
    Path("tasks/install.json").write_text(bad)
    assert cli("tasks/install.json").stderr.startswith(shown)


HELLO = {
    "name": "Hello",
    "variables": {"ROLE": "consumer"},
    "tasks": [
        {"id": "01-greet", "commands": ['echo "hello from $NODE_NAME, a $ROLE"']},
        {"id": "02-check", "commands": ["ls -d /opt/no-such-folder"], "when": {"NODE_NAME": "node2"}},
    ],
}


def test_the_nodes_that_are_shown(make_sshd: Callable[..., Sshd], identity: Path) -> None:
    server = make_sshd(address="0.0.0.0")
    config, known = "", ""
    for number in (1, 2):
        address = f"127.0.0.{number + 1}"
        config += f"Host gpu-{number}\n  HostName {address}\n  Port {server.port}\n"
        known += server.known_as(f"[{address}]:{server.port}")
    (identity.parent / "config").write_text(config)
    (identity.parent / "known_hosts").write_text(known)
    (shown,) = blocks("docs/nodes.md", "toml")
    state = f"{server.state}/second"
    Path("nodes.toml").write_text(
        shown.replace("/mnt/nvme/taskrunner", state)
        .replace("python3.11", "python3")
        .replace("ubuntu", server.user)
    )
    Path("tasks").mkdir()
    Path("tasks/hello.json").write_text(json.dumps(HELLO, indent=2))
    (recording,) = blocks("docs/nodes.md", "console")
    printed = ""
    for typed in (line[2:] for line in recording.splitlines() if line.startswith("$ ")):
        words = [
            sys.executable,
            "-c",
            "from taskrunner.cli.main import runner; runner()",
            *typed.split()[1:],
        ]
        done = completed(words)
        printed += f"$ {typed}\n{done.stdout}"
    assert sorted(without_times(printed)) == sorted(without_times(recording))


def without_times(text: str) -> list[str]:
    """Lines without dates, durations, latencies and versions of Python."""
    return [re.sub(r"[\d-]+ [\d:]+ \[|\d+\.\d+ ?m?s|Python [\d.]+", "*", line) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["README.md", "docs/nodes.md", "taskrunner/cli/registry.py"])
def test_the_variables_that_examples_give_are_those_of_the_packs(name: str) -> None:
    known = {pack.name: load(pack.path).document.data.get("variables", {}) for pack in packs.packs()}
    given = [
        (words[0], word.partition("=")[0])
        for line in (ROOT / name).read_text().splitlines()
        if (words := [word for word in line.split() if word in known])
        for option, word in pairwise(line.split())
        if option == "--env"
    ]
    assert given
    assert [(pack, variable) for pack, variable in given if variable not in known[pack]] == []


def test_every_key_of_a_step_is_documented() -> None:
    text = (ROOT / "docs/task-files.md").read_text()
    schema = json.loads(packs.schema_path().read_text())
    for key in schema["$defs"]["Task"]["properties"]:
        assert f"`{key}`" in text, key


def test_every_event_of_the_log_is_documented() -> None:
    text = (ROOT / "docs/nodes.md").read_text()
    calls = re.compile(r"log\.(?:debug|info|warning)\(\s*\"([a-z0-9_.]+)\"")
    events = {
        name for path in (ROOT / "taskrunner").rglob("*.py") for name in calls.findall(path.read_text())
    }
    assert {name for name in events if f"`{name}`" not in text} == set()
    assert "ssh.connected" in events


def test_the_recording_in_the_readme(terminal: Terminal, tmp_path: Path) -> None:
    (recording,) = blocks("README.md", "console")
    commands = [line[2:] for line in recording.splitlines() if line.startswith("$ ")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = f" --env PORT={free.getsockname()[1]} --env DIR={tmp_path}/q"
    terminal.type(f'cd {ROOT}; taskrunner() {{ {" ".join(command())} "$@"{own}; }}', "Enter")
    shown: list[str] = []
    for number, typed in enumerate(commands):
        end = f"END-{number}"  # what the last command has left may still be on the screen
        terminal.type(f"clear; {typed}; echo {end}", "Enter")
        screen = terminal.see(f"\n{end}")
        shown += [f"$ {typed}", *screen.split(f"\n{end}")[0].splitlines()]
    shown = [line.replace(own, "") for line in shown if line.strip() and "echo END" not in line]
    assert [_timeless(line) for line in shown] == [_timeless(line) for line in recording.splitlines()]


def _timeless(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?s\b|run \d{8}-\d{6}-\d{6}", "T", line.rstrip())

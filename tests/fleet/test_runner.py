"""`runner` on several nodes: addresses of 127.0.0.0/8 that one real sshd serves."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner.fleet.nodes import load_nodes
from taskrunner.fleet.plans import run_on
from taskrunner.transports.stream import session
from tests.helpers import Process, completed, runner_command, wait_for
from tests.relay import Relay
from tests.sshd import Sshd, free_port
from tests.terminal import Terminal

Write = Callable[..., Path]
Runner = Callable[..., Process]


def test_one_node_by_its_name(nodes: Sshd, write: Write, runner: Runner) -> None:
    path = write(
        {"id": "a", "commands": ["echo $NODE_NAME sees <<NODE2_PRIVATE>>, is $N of <<M>>"]},
        variables={"N": 0, "M": 1, "NODE2_PRIVATE": {"required": True}},
    )
    done = runner("run-node1", path, "--env", "M=3", "-v")
    assert "node1 sees 172.31.0.2, is 1 of 3\n" in done.stdout
    assert done.returncode == 0
    again = runner("run", "node1", path, "--env", "M=3")
    assert "1 skipped" in again.stdout
    assert "sees" in runner("logs", "node1").stdout or "nothing" not in runner("logs", "node1").stdout
    failing = write({"id": "a", "commands": ["exit 1"]}, file="work/fail.json")
    assert f"runner run node1 {failing} --from a" in runner("run-node1", failing).stdout


def test_a_bare_name_is_found_in_tasks(nodes: Sshd, write: Write, runner: Runner) -> None:
    write({"id": "a", "commands": ["true"]}, file="work/tasks/measure-it.json")
    assert runner("run-node1", "measure-it.json").returncode == 0
    assert runner("run", "node1", "measure-it").returncode == 0


def test_several_nodes(nodes: Sshd, write: Write, runner: Runner) -> None:
    path = write(
        {
            "id": "a",
            "commands": ["echo from $N > out$N"],
            "outputs": [{"from": "out<<N>>", "to": "results/out"}],
        },
        variables={"N": 0},
    )
    done = runner("run", "pair", path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-3:-1] == [
        line for line in done.stdout.splitlines() if line.startswith("✓ node")
    ]
    assert done.stdout.splitlines()[-1] == "2 nodes: 2 ok"
    assert Path("results/node1/out").read_text() == "from 1\n"
    assert Path("results/node2/out").read_text() == "from 2\n"
    assert "3 nodes: 3 ok" in runner("run-all", path).stdout
    events = [json.loads(line) for line in runner("run-all", path, "--json").stdout.splitlines()]
    assert {event["node"] for event in events} == {"node1", "node2", "node3"}
    ends = [event for event in events if event["type"] == "node.finished"]
    assert [(end["status"], end["skipped"]) for end in ends] == [("ok", 1)] * 3


def test_a_failing_node_is_shown_whole_and_the_others_go_on(
    nodes: Sshd, write: Write, runner: Runner
) -> None:
    talk = "for i in $(seq 30); do echo $N line $i; sleep 0.01; done; [ $N != 2 ]"
    path = write({"id": "a", "commands": [talk]}, variables={"N": 0})
    done = runner("run-all", path)
    assert done.returncode == 1
    block = "\n".join(f"    | 2 line {i}" for i in range(1, 31))
    assert block in done.stdout
    assert "3 nodes: 2 ok, 1 failed" in done.stdout
    loud = runner("run-all", path, "-v", "--reset").stdout
    assert all(f"node3 | 3 line {i}\n" in loud for i in range(1, 31))


def test_a_node_that_cannot_be_reached_does_not_hold_up_the_rest(
    nodes: Sshd, write: Write, runner: Runner
) -> None:
    with Path("nodes.toml").open("a") as file:
        file.write(
            f'[nodes.gone]\naddress = "127.0.0.9"\nport = {free_port()}\n[nodes.noaddress]\nprivate = "10.0.0.1"\n'
        )
    path = write({"id": "a", "commands": ["true"]})
    done = runner("run-all", path)
    assert done.returncode == 3
    assert "3 ok, 2 unreachable" in done.stdout
    assert "nothing listens there" in done.stdout
    assert "no address is known" in done.stdout
    listed = json.loads(runner("nodes", "--json").stdout)
    assert [node["reachable"] for node in listed] == [True, True, True, False, False]
    assert listed[0]["python"] == ".".join(map(str, sys.version_info[:3])) or listed[0]["python"]


def test_a_node_that_disappears_in_the_middle(
    nodes: Sshd, write: Write, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SILENT", 1.0)
    monkeypatch.setattr(session, "PING", 0.3)
    relay = Relay(nodes.port)
    with (identity.parent / "known_hosts").open("a") as known:
        known.write(nodes.known_as(f"[127.0.0.3]:{relay.port}"))
    text = Path("nodes.toml").read_text()
    Path("nodes.toml").write_text(text.replace("[nodes.node2]", f"[nodes.node2]\nport = {relay.port}"))
    path = write(
        {"id": "a", "commands": ["touch at$N; until [ -e go ]; do sleep 0.02; done"]}, variables={"N": 0}
    )
    fleet = run_on(load_nodes(), "all", path, reach={"connect_timeout": 1.0, "reconnect_timeout": 1.0})
    ends = {}

    def vanish() -> None:
        relay.swallow = relay.swallow or len(list(nodes.home.glob("at*"))) == 3

    for name, event in fleet.events(vanish):
        if event["type"] == "node.finished":
            ends[name] = event
            (nodes.home / "go").touch()
        if event["type"] == "connection":
            (nodes.home / "go").touch()
    assert {name: end["status"] for name, end in ends.items()} == {
        "node1": "ok",
        "node2": "unreachable",
        "node3": "ok",
    }
    assert "lost, and not reconnected within 1 s" in ends["node2"]["message"]
    assert fleet.exit == 3
    relay.close()


def test_fail_fast_serial_and_max_parallel(nodes: Sshd, write: Write, runner: Runner) -> None:
    log = nodes.home / "log"
    path = write(
        {
            "id": "a",
            "commands": [f"echo begin $N >> '{log}'; sleep 0.3; echo end $N >> '{log}'; [ $N != 2 ]"],
        },
        variables={"N": 0},
    )
    done = runner("run-all", path, "--serial", "1")
    assert log.read_text().split() == "begin 1 end 1 begin 2 end 2 begin 3 end 3".split()
    assert done.returncode == 1
    log.unlink()
    done = runner("run-all", path, "--serial", "1", "--fail-fast", "--reset")
    assert "end 2" in log.read_text()
    assert "begin 3" not in log.read_text()
    assert "1 ok, 1 failed, 1 skipped" in done.stdout
    log.unlink()
    runner("run-all", path, "--max-parallel", "1", "--reset")
    words = log.read_text().split()
    assert words[::2] == ["begin", "end"] * 3
    log.unlink()
    slow = write(
        {"id": "a", "commands": ["[ $N != 2 ] && sleep 600"]},
        {"id": "z", "always": True, "commands": [f"echo clean $N >> '{log}'"]},
        variables={"N": 0},
        file="work/slow.json",
    )
    began = time.monotonic()
    done = runner("run-all", slow, "--fail-fast")
    assert time.monotonic() - began < 30
    assert "1 failed" in done.stdout
    assert "2 cancelled" in done.stdout
    assert sorted(log.read_text().split("\n")[:-1]) == ["clean 1", "clean 2", "clean 3"]


def test_mistakes_in_the_file_are_said_before_anything_runs(
    nodes: Sshd, write: Write, runner: Runner
) -> None:
    path = write({"id": "a", "commands": ["echo <<NOPE>>"]})
    done = runner("run-all", path)
    assert done.returncode == 2
    assert done.stderr.count("NOPE is not defined") == 1
    assert not nodes.state.exists()
    assert "did you mean node1" in runner("run", "nod1", path).stderr
    assert "did you mean nodes" in runner("node").stderr
    assert runner("--help").returncode == 0
    assert "runner run-node1" in runner("--help").stdout
    assert "--accept-new-host-keys" in runner("run", "--help").stdout


def test_ctrl_c_stops_all_and_attach_shows_all(nodes: Sshd, write: Write, runner: Runner) -> None:
    path = write(
        {"id": "a", "commands": ["touch at$N; sleep 600"]},
        {"id": "z", "always": True, "commands": ["touch clean$N"]},
        variables={"N": 0},
    )

    def begin() -> subprocess.Popen[str]:
        for file in nodes.home.glob("*"):
            file.unlink()
        process = subprocess.Popen(
            runner_command("run-all", path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for(lambda: len(list(nodes.home.glob("at*"))) == 3)
        return process

    process = begin()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "3 nodes: 3 cancelled" in out
    assert len(list(nodes.home.glob("clean*"))) == 3
    process = begin()
    process.kill()
    process.communicate()
    assert "at a (1/2)" in runner("status").stdout
    attached = subprocess.Popen(runner_command("attach", "all"), stdout=subprocess.PIPE, text=True)
    assert "3 live" in f"{len(json.loads(runner('status', '--json').stdout))} live"
    done = runner("cancel", "all")
    assert done.stdout.count("ended") == 3
    out, _ = attached.communicate(timeout=30)
    assert "3 nodes: 3 cancelled" in out
    assert "nothing is running; last" in runner("status").stdout


def test_dry_run_detach_list(nodes: Sshd, write: Write, runner: Runner) -> None:
    path = write({"id": "a", "name": "The first", "skip_if": "[ -e x ]", "commands": ["touch x"]})
    assert runner("run-all", path, "--dry-run").stdout.count("would run") == 3
    assert not (nodes.home / "x").exists()
    assert "The first" in runner("run-all", path, "--list").stdout
    ids = runner("run-all", path, "--detach").stdout.split()
    assert len([word for word in ids if word[:2] == "20"]) == 3
    wait_for(lambda: runner("status").stdout.count("The first") == 0 and (nodes.home / "x").exists())
    assert "node1" in runner("attach", "all").stdout


def test_put_get_and_shell(nodes: Sshd, runner: Runner) -> None:
    Path("a file").write_text("content")
    assert runner("put", "node1", "a file", "there/").stdout.startswith("node1: 1 file sent")
    assert "verified up to date" in runner("put", "node1", "a file", "there/").stdout
    assert runner("get", "pair", "there/a file", "back").returncode == 0
    assert Path("back/node2/a file").read_text() == "content"
    assert runner("get", "node1", "there", "one").returncode == 0
    assert Path("one/a file").read_text() == "content"
    missing = runner("get", "node1", "nothing", "x")
    assert missing.returncode == 2
    assert "No such file" in missing.stderr
    done = runner("shell", "node1", "cat ~/'there/a file'; exit 7")
    assert (done.stdout, done.returncode) == ("content", 7)


def test_the_live_table(nodes: Sshd, write: Write, terminal: Terminal, identity: Path) -> None:
    path = write(
        {"id": "talk", "commands": ["echo hello from $N; until [ -e go ]; do sleep 0.02; done; [ $N != 3 ]"]},
        variables={"N": 0},
    )
    command = " ".join(f"'{word}'" for word in runner_command("run-all", path))
    terminal.type(f"cd {Path.cwd()}; HOME={identity.parent.parent} {command}", "Enter")
    for text in ("node2  1/1  talk", "hello from 2", "0 of 3 done"):
        terminal.see(text)
    (nodes.home / "go").touch()
    screen = terminal.see("3 nodes: 2 ok, 1 failed")
    assert "✗ node3  0 ok, 0 skipped, 1 failed" in screen
    assert "    | hello from 3" in screen
    assert "hello from 1" not in screen


def test_from_python(nodes: Sshd, write: Write) -> None:
    path = write({"id": "a", "commands": ["echo $N"]}, variables={"N": 0})
    fleet = run_on(load_nodes(), "pair", path, output=True)
    printed = {name: event["text"] for name, event in fleet.events() if event["type"] == "output"}
    assert printed == {"node1": "1\n", "node2": "2\n"}
    assert fleet.exit == 0
    assert fleet.statuses == {"node1": "ok", "node2": "ok"}


def test_options_that_make_no_sense_and_options_anywhere(nodes: Sshd, write: Write, runner: Runner) -> None:
    path = write({"id": "a", "skip_if": "false", "commands": ["true"]}, variables={"X": 0})
    for words in (
        ("--serial", "-1"),
        ("--serial", "0"),
        ("--max-parallel", "x"),
        ("--connect-timeout", "nan"),
        ("--reconnect-timeout", "-1"),
    ):
        done = runner("run-all", path, *words)
        assert (done.returncode, "expected a number" in done.stderr) == (2, True), words
    assert runner("run", "node1", "--env", "X=1", path).returncode == 0
    assert runner("run-node1", "--serial", "1", path, "--nodes", "nodes.toml").returncode == 0
    with Path("nodes.toml").open("a") as file:
        file.write("[groups.none]\nnodes = []\n")
    assert "contains no nodes" in runner("run", "none", path).stderr


def test_what_is_done_on_several_nodes_goes_on_after_one_that_is_gone(
    nodes: Sshd, write: Write, runner: Runner
) -> None:
    text = Path("nodes.toml").read_text()
    Path("nodes.toml").write_text(
        text.replace('address = "127.0.0.2"', f'address = "127.0.0.2"\nport = {free_port()}')
    )
    path = write({"id": "a", "skip_if": "false", "commands": ["true"]})
    detached = runner("run-all", path, "--detach", "--json")
    found = [json.loads(line) for line in detached.stdout.splitlines()]
    assert (detached.returncode, [line["node"] for line in found]) == (3, ["node1", "node2", "node3"])
    assert found[0]["type"] == "error"
    wait_for(
        lambda: (
            json.loads(runner("status", "node2,node3", "--json").stdout)
            == [{"node": f"node{n}", "runs": []} for n in (2, 3)]
        )
    )
    dry = runner("run-all", path, "--dry-run", "--json")
    assert {json.loads(line)["node"] for line in dry.stdout.splitlines()} == {"node1", "node2", "node3"}
    status = runner("status", "--json")
    assert sorted("error" in line for line in json.loads(status.stdout)) == [False, False, True]
    assert status.returncode == 3
    quiet = runner("run", "node2,node3", path, "--quiet")
    assert (quiet.stdout, quiet.returncode) == ("", 0)


def test_a_reader_that_goes_away(nodes: Sshd, write: Write) -> None:
    path = write(
        {"id": "a", "commands": ["for i in 1 2 3 4 5 6 7 8; do echo line; sleep 0.1; done; touch ended"]}
    )
    words = " ".join(f"'{word}'" for word in runner_command("run-node1", path, "-v"))
    done = completed(["bash", "-c", f"{words} | head -1; echo ${{PIPESTATUS[0]}}"])
    assert done.stdout.splitlines()[-1] == "141"
    assert "output closed; run 20" in done.stderr
    assert "runner attach node1 20" in done.stderr
    wait_for(lambda: (nodes.home / "ended").exists())


def test_a_table_of_many_nodes_in_a_narrow_terminal() -> None:
    from rich.console import Console

    from taskrunner.cli.output.nodes_live import Live
    from taskrunner.cli.output.nodes_text import About

    names = [f"a-node-{number:03}" for number in range(200)]
    live = Live(names, About(lambda _: "f", lambda node, step: ""))
    console: Any = Console(width=60, height=24, force_terminal=True, record=True, file=io.StringIO())
    live._console = console
    for name in names[:150]:
        live.event(name, {"type": "node.started", "time": 0.0})
        live._rows[name].count = 20
        live.event(
            name, {"type": "step.started", "time": 0.0, "step": "07-install", "index": 6, "attempt": 1}
        )
        live.event(
            name, {"type": "output", "time": 0.0, "step": "07-install", "index": 6, "text": "x" * 300 + "\n"}
        )
    live._console.print(live._view())
    lines = live._console.export_text().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 60 for line in lines)
    assert lines[0].startswith("a-node-000  7/20  07-install  0.")
    assert lines[-1] == "132 more running, 50 waiting, 0 of 200 done"

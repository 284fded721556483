"""`runner run NODE:FILE,NODE:FILE`: the sides of a measurement, started together."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from taskrunner.fleet.nodes import load_nodes
from taskrunner.fleet.plans import run_on
from tests.helpers import Process
from tests.sshd import Sshd

Write = Callable[..., Path]
Runner = Callable[..., Process]


def test_a_file_of_its_own_on_each_of_two_nodes(nodes: Sshd, write: Write, runner: Runner) -> None:
    home = nodes.home
    server = write(
        {"id": "serve", "commands": ["until [ -e asked ]; do sleep 0.02; done", "echo $A > out"]},
        file="work/serve.json",
        variables={"A": 0},
    )
    client = write(
        {
            "id": "ask",
            "commands": ["touch asked", "echo $NODE_NAME asks $PEER for $B > answer"],
            "outputs": [{"from": "answer", "to": "results/answer"}],
        },
        file="work/ask.json",
        variables={"B": 0, "PEER": "127.0.0.1"},
    )
    done = runner("run", f"node2:{server},node1:{client}", "--env", "A=7", "--env", "B=8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 nodes: 2 ok"
    assert Path("results/node1/answer").read_text() == "node1 asks 172.31.0.2 for 8\n"
    assert (home / "out").read_text() == "7\n"
    listed = runner("run", f"node2:{server},node1:{client}", "--dry-run").stdout
    assert listed.index("== node2 ==") < listed.index("serve") < listed.index("== node1 ==")
    # Neither waits for the other when that has failed.
    (home / "asked").unlink()
    failing = write({"id": "ask", "commands": ["exit 3"]}, file="work/fail.json", variables={"PEER": ""})
    began = time.monotonic()
    done = runner("run", f"node2:{server},node1:{failing}", "--env", "A=9")
    assert (done.returncode, time.monotonic() - began < 30) == (1, True)
    assert "1 cancelled, 1 failed" in done.stdout
    assert f"runner run node1 {failing} --env PEER=172.31.0.2 --from ask" in done.stdout
    detached = runner("run", f"node2:{server},node1:{client}", "--detach", "--env", "A=9")
    assert detached.returncode == 0
    assert "2 nodes: 2 ok" in runner("attach", "node1,node2").stdout


def test_what_cannot_be_meant_with_a_file_for_each_node(nodes: Sshd, write: Write, runner: Runner) -> None:
    path = write({"id": "a", "commands": ["echo <<N>>"]}, variables={"N": 0})
    with Path("nodes.toml").open("a") as file:
        file.write('[nodes.far]\nid = "i-0123456789abcdef0"\n')
    peer = write({"id": "a", "commands": ["echo <<PEER>>"]}, file="work/p.json", variables={"PEER": ""})
    for words, message in (
        ([f"node1:{path},node2"], "'node2' names no file"),
        ([f"node1:{path},node1:{path}"], "node1 is given two files"),
        ([f"pair:{path},node1:{path}"], "node1 is given two files"),
        ([f"node1:{path},node9:{path}"], "unknown node or group 'node9'"),
        ([f"node1:{path},node2:nowhere.json"], "nowhere.json"),
        ([f"node1:{path},node2:{path}", path], "cannot be used with NODE:FILE"),
        ([f"node1:{path},node2:{path}", "--from", "a"], "--from cannot be used with NODE:FILE"),
        ([f"node1:{path},node2:{path}", "--env", "M=1"], "--env M: no such variable"),
        ([f"node1:{peer},far:{path}"], "set FAR_PRIVATE, or give --env PEER=ADDRESS"),
    ):
        done = runner("run", *map(str, words))
        assert (done.returncode, message in done.stderr) == (2, True), (words, done.stderr)
        assert done.stderr.count(message) == 1


def test_a_file_for_each_node_from_python(nodes: Sshd, write: Write) -> None:
    one = write({"id": "a", "commands": ["echo one"]}, file="work/one.json")
    two = write({"id": "a", "commands": ["echo two"]}, file="work/two.json")
    fleet = run_on(load_nodes(), f"node1:{one},node2:{two}", output=True)
    printed = {name: event["text"] for name, event in fleet.events() if event["type"] == "output"}
    assert printed == {"node1": "one\n", "node2": "two\n"}

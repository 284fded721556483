"""One table of task files, run here, over SSH and by SSM: the same events, results, logs, journals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import start
from taskrunner.transports import connect
from tests.aws import Aws
from tests.sshd import Sshd

Write = Callable[..., Path]
SECRET = {"KEY": {"secret": True, "default": "hunter2hunter2"}, "WORD": "é ß"}

TABLE: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"id": "a", "name": "Say", "commands": ["echo one", "echo two >&2"]},
        {"id": "b", "commands": ["printf end"]},
    ],
    "guards": [
        {"id": "a", "skip_if": "true", "commands": ["false"]},
        {"id": "b", "skip_if": "false", "commands": ["true"]},
    ],
    "failure": [
        {"id": "a", "commands": ["echo why", "exit 194"]},
        {"id": "b", "commands": ["true"]},
        {"id": "z", "always": True, "commands": ["echo cleaned"]},
    ],
    "tolerated": [
        {"id": "a", "on_failure": "continue", "commands": ["exit 168"]},
        {"id": "b", "commands": ["echo on"]},
    ],
    "killed": [{"id": "a", "commands": ["kill -9 $$"]}],
    "timeout": [{"id": "a", "timeout": 0.3, "commands": ["exec sleep 60"]}],
    "retries": [
        {
            "id": "a",
            "retries": {"attempts": 3, "delay": 0.01},
            "commands": ["echo x >> tries; [ $(wc -l < tries) = 3 ]"],
        }
    ],
    "secrets": [{"id": "a", "commands": ["echo $KEY <<KEY>> <<WORD>>"]}],
    "one shell": [
        {"id": "a", "commands": ["cd /tmp; export X=1; f() { echo f; }", "pwd; echo $X; f"]},
        {"id": "b", "commands": ["echo ${X-unset}"]},
    ],
    "a here-document": [{"id": "a", "commands": ["cat <<'E'", "{ $not expanded", "E"]}],
    "bytes": [{"id": "a", "commands": ["printf 'a\\377b\\0c\\r\\nd\\303'"]}],
    "much": [{"id": "a", "commands": ["seq 200000"]}],
    "what a step makes is for whom the user says": [{"id": "a", "commands": ["umask", "ulimit -n"]}],
    "stdin": [{"id": "a", "commands": ["cat; echo empty"]}],
    "background": [{"id": "a", "commands": ["(sleep 0.5; echo late > late) & echo at once"]}],
    "waiting": [
        {"id": "a", "commands": ["(sleep 0.2; touch there) &"]},
        {"id": "b", "wait_for": {"file": "there", "timeout": 5}},
    ],
    "a service": [
        {
            "id": "a",
            "service": {"name": "s", "command": "echo ready; exec sleep 60", "ready": {"log": "ready"}},
        },
        {"id": "b", "service": {"name": "s", "state": "stopped"}},
    ],
    "outputs": [{"id": "a", "commands": ["echo result > out"], "outputs": [{"from": "out", "to": "here"}]}],
    "an environment": [{"id": "a", "env": {"A": "1 2"}, "cwd": "/", "commands": ['echo "$A"; pwd']}],
}


def normal(value: Any, volatile: re.Pattern[str]) -> Any:
    """Without what differs from run to run: times, process and run ids, durations."""
    if isinstance(value, dict):
        left_out = ("time", "duration", "pid", "run", "delay", "file")
        return {name: normal(item, volatile) for name, item in value.items() if name not in left_out}
    if isinstance(value, list):
        return [normal(item, volatile) for item in value]
    return volatile.sub("*", value) if isinstance(value, str) else value


def observe(path: Path, on: Any, state: Path) -> dict[str, Any]:
    volatile = re.compile(r"\d{8}-\d{6}-\d{6}|line \d+: +\d+ Killed.*")
    with start(path, on=on) as begun:
        # Whether a step takes a while is the machine's business.
        events = [event for event in begun.events() if event["type"] != "step.running"]
        text: dict[str, str] = {}
        for event in begun.so_far(output=True):
            if event["type"] == "output":
                text[event["step"]] = text.get(event["step"], "") + event["text"]
    begun.transport.close()
    logs = {
        log.name: volatile.sub("*", log.read_bytes().decode("latin-1"))
        for log in (state / "runs" / begun.id / "logs").iterdir()
    }
    journal = [
        {name: entry[name] for name in ("step", "key") if name in entry}
        for file in (state / "journal").glob(f"{path.stem}-*")
        for entry in map(json.loads, file.read_text().splitlines())
    ]
    return {
        "events": normal(events, volatile),
        "text": normal(text, volatile),
        "logs": logs,
        "journal": journal,
    }


@pytest.mark.parametrize("name", TABLE)
def test_the_same_everywhere(name: str, write: Write, home: Path, sshd: Sshd, cloud: Aws) -> None:
    path = write(*TABLE[name], file=f"work/{name.replace(' ', '-')}.json", variables=SECRET)
    for _ in range(2):
        here = observe(path, None, home)
        there = observe(path, sshd.target, sshd.state)
        assert there == here
        # Secrets go through a bucket.
        unseen = observe(path, connect(cloud.target(), bucket=cloud.bucket()), cloud.state())
        assert unseen == here
    for kind in here["events"]:
        assert kind["type"] != "connection"

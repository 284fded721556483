"""Steps of network and GPU tools, before any server: their buffers do not fit beside those."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from taskrunner.experiments.cells import tool_fingerprint, tool_place
from taskrunner.experiments.sweep.steps import (
    LIB,
    PATIENCE_S,
    RENDEZVOUS,
    TOKEN,
    Step,
    Sweep,
    await_begin,
    begin,
    say,
    skipped,
    stop,
)
from taskrunner.experiments.tools import PORT, Run

SERVER = "low-level-server"
TIMEOUT_S = 600
"""Of a tool: peers that disagree wait forever."""


def client(sweep: Sweep, run: Run) -> Iterator[Step]:
    """What node 1 does for one run; on a single node the server, too."""
    key, where = _key(run), tool_place(sweep.schedule, run)
    done = sweep.measured([(where, tool_fingerprint(run))])
    title, result = f"{run.pattern.id} {run.part}", f"results/{where}/result.json"
    if run.between and sweep.two:
        yield begin(key, title, done)
    if run.between and not sweep.two:
        yield {"id": f"{key}-server", **_server(title, done, run)}
    words = f"{LIB} {shlex.join(run.words)}"
    if run.between:
        peer = "<<NODE2_PRIVATE>>"
        words = f"{LIB} tool client {shlex.join(run.words)} --port {PORT} --peer {peer} --timeout {TIMEOUT_S}"
    yield {
        "id": key,
        "name": f"{title}: {run.pattern.tool}",
        "cwd": "<<ENV_DIR>>",
        "skip_if": done,
        "on_failure": "continue",
        "timeout": f"{2 * TIMEOUT_S}s",
        "env": {"FINGERPRINT": tool_fingerprint(run)},
        "commands": [f"{words} -o {result}"],
        "outputs": [{"from": f"<<ENV_DIR>>/{result}", "to": result}],
    }
    if run.between and sweep.two:
        yield say(f"{key}-over", f"{title} is over", f"{key}-over", "over")
    elif run.between:
        yield {"id": f"{key}-stop", **stop(SERVER), "skip_if": done}


def server(sweep: Sweep, run: Run) -> Iterator[Step]:
    """What node 2 does for one run between both nodes."""
    key, title = _key(run), f"{run.pattern.id} {run.part}"
    skip = skipped(sweep, key)
    yield await_begin(sweep, key, title)
    yield {"id": f"{key}-server", **_server(title, skip, run), "cwd": "<<ENV_DIR>>"}
    yield {
        "id": f"{key}-hold",
        "name": f"{title}: until node 1 has measured",
        "skip_if": f"{skip} || [ -e {sweep.words(key)}-over ]",
        "on_failure": "continue",
        "cwd": "<<ENV_DIR>>",
        "env": TOKEN,
        "commands": [
            f"{LIB} rendezvous wait --url {RENDEZVOUS} {key}-over --patience {PATIENCE_S} --unless sweep",
            f"touch {sweep.words(key)}-over",
        ],
    }
    yield {"id": f"{key}-stop", **stop(SERVER), "skip_if": skip, "cwd": "<<ENV_DIR>>"}


def _key(run: Run) -> str:
    return f"t-{run.pattern.id}-{run.part}"


def _server(title: str, done: str, run: Run) -> Step:
    return {
        "name": f"{title}: the server of {run.pattern.tool}",
        "skip_if": done,
        "on_failure": "continue",
        "service": {
            "extends": SERVER,
            "command": f"exec {LIB} tool server {shlex.join(run.words)} --port {PORT}",
            "ready": {"listen": PORT, "timeout": "1m"},
        },
    }

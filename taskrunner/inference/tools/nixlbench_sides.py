"""How both sides of nixlbench meet.

nixlbench has two processes, which exchange what they need over TCP (its ASIO runtime). The one that is up
first has rank 0 and prints the rows, so it must be the initiator; and either waits for seconds only (25 s to
connect, 15 s for a message). So the target's node listens until the initiator's node says that its process
is up, in a line of JSON, and only then starts its own; the processes meet at the port behind.

Several initiators are devices of one process: what nixlbench 1.4 does with a process for each never ends, as
all of them wait for rank 1 as if it were the target.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from ..circumstances import machine, processes
from .cards import CARDS
from .commands import NIXLBENCH
from .process import output_of
from .reading import Parsed

TOOL, SHAPE = NIXLBENCH
"""nixlbench, and the same with blocks of a KV cache: what kvbench plans, and nixlbench measures."""
BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's KV cache; whole blocks are transferred."""
READY_WITHIN_S, LOOK_S = 60.0, 0.05
MEMORY = {"host": "DRAM", "cuda": "VRAM"}


class PairingError(Exception):
    """What is asked for is no measurement, or its other side has failed."""


def settings(tool: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with what nixlbench's command line needs beside them. Raises PairingError."""
    size, batch = values["size"], values["batch"]
    if tool == SHAPE:
        if values["tokens"] <= 0 or values["token_bytes"] <= 0:
            raise PairingError(f"{SHAPE} needs --tokens and --token-bytes, the KV cache of each")
        size, batch = BLOCK_TOKENS * values["token_bytes"], -(-values["tokens"] // BLOCK_TOKENS)
    if values["memory"] not in MEMORY:
        raise PairingError(f"{tool}: --memory is one of {', '.join(MEMORY)}, not {values['memory']!r}")
    many = values["initiators"] > 1
    return {
        **values,
        "size": size,
        "batch": batch,
        "total": size * batch * values["threads"] * values["initiators"],
        "segment": MEMORY[values["memory"]],
        "scheme": "manytoone" if many else "pairwise",
        "mode": "MG" if many else "SG",
    }


def await_initiator(values: Mapping[str, Any]) -> list[str]:
    """Listen until an initiator is up; the words of its target. Raises PairingError for one that will not be,
    OSError.
    """
    with socket.create_server(("", values["port"])) as listener:
        while True:
            connection, (address, *_) = listener.accept()
            with connection, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                connection.settimeout(READY_WITHIN_S)
                with connection.makefile("rb") as lines:
                    up = json.loads(lines.readline(1024))["up"]
                if not up:
                    raise PairingError(f"the initiator at {address} has not come up")
                return _meeting(values, address)


def initiate(argv: list[str], values: Mapping[str, Any]) -> tuple[int | None, str, str]:
    """Run the initiator against the target that waits at `peer`: status, stdout and stderr, as `output_of`
    has them. A target that is not there yet is a refused connection. Raises PairingError.
    """
    meeting = values["port"] + 1
    if (owner := processes.listeners((meeting,)).get(meeting)) is not None:
        problem = f"port {meeting}, where nixlbench's processes meet, is taken by process {owner}"
        raise PairingError(f"{problem}; choose a port whose next one is free")
    try:
        with socket.create_connection((values["peer"], values["port"]), READY_WITHIN_S) as target:
            argv = [*argv, *_meeting(values, target.getsockname()[0])]
            return output_of(argv, values["timeout"], started=lambda pid: _say_when_up(pid, meeting, target))
    except OSError as error:
        return 1, "", f"{values['peer']} port {values['port']}: {error.strerror or error}"


def _meeting(values: Mapping[str, Any], address: str) -> list[str]:
    """The words that say where both processes meet: at the initiator's address."""
    port = str(values["port"] + 1)
    return ["--runtime_type", "ASIO", "--asio_address", address, "--asio_port", port]


def _say_when_up(pid: int, port: int, target: socket.socket) -> None:
    """Tell the target whether the initiator listens; to connect would make this its peer."""
    until = time.monotonic() + READY_WITHIN_S
    up = ended = False
    while not (up or ended) and time.monotonic() < until:
        time.sleep(LOOK_S)
        up = processes.listeners((port,)).get(port) == pid
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    if not (up or ended):
        os.kill(pid, signal.SIGKILL)
    target.sendall(json.dumps({"up": up}).encode() + b"\n")


def figures_of(tool: str, figures: Parsed, values: Mapping[str, Any]) -> Parsed:
    """The figures of nixlbench; of a KV cache with its size in bytes, the milliseconds for all of it, and the
    share of the line rate of this instance's card, where that is known.
    """
    if tool != SHAPE:
        return figures
    gbps, size = figures["rows"][0]["bandwidth_gbps"], values["size"] * values["batch"]
    _, line_rate = CARDS.get(machine.about()["instance_type"], (0, 0))
    cache = {
        "tokens": values["tokens"],
        "token_bytes": values["token_bytes"],
        "bytes": size,
        "line_rate_gbps": line_rate or None,
        "ratio_to_line_rate": round(gbps / line_rate, 4) if line_rate else None,
    }
    took = size * 8 / (gbps * 1e6)
    return {
        **figures,
        "tool": SHAPE,
        "kv_cache": cache,
        "summary": {**figures["summary"], "kv_transfer_time_ms": round(took, 4)},
    }

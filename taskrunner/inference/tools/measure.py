"""The client of a tool that measures between two nodes: tried until its server is there, judged, recorded."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..circumstances import machine
from . import commands, fabric, nixlbench_sides, node_record
from .commands import NIXLBENCH
from .process import find, output_of
from .reading import NotAResult, Parsed, last_words, record
from .registry import PERFTEST, SIZED
from .registry import parser as parser_of

REFUSED = re.compile(
    r"Connection refused|Couldn't connect to|unable to (?:connect to server|send control message)"
)
"""What a client says whose server is not there yet; none of them tries again by itself."""
RETRY_FOR_S, RETRY_DELAY_S = 60.0, 1.0
GPU = Path("/dev/nvidiactl")
"""Exists where NVIDIA's driver is loaded."""


class NotInstalledError(Exception):
    """A tool, or the device that it needs, that is not on this node, and what brings it."""


def command_line(tool: str, side: str, values: Mapping[str, Any]) -> list[str]:
    """How one side is called, its program by its path; `values` are those of `resolved`. Raises
    NotInstalledError.
    """
    argv = commands.words(tool, side, values)
    program = find(argv[0])
    if program is None:
        package = commands.TOOLS[tool].package
        raise NotInstalledError(
            f"{argv[0]} is not installed: "
            + (f"apt-get install {package}" if package else "run setup-low-level")
        )
    if _over_ucx(tool, values):
        # Left alone it takes shared memory between two processes of one machine, also across containers.
        # Where there is a GPU, NIXL's UCX needs what moves its memory, even to measure the host's.
        memory = "cuda" if tool in NIXLBENCH and GPU.exists() else values["memory"]
        os.environ.setdefault("UCX_TLS", commands.ucx_transports(values["provider"], memory))
    elif tool in NIXLBENCH:
        os.environ.setdefault("FI_PROVIDER", values["provider"])
    return [program, *argv[1:]]


def resolved(tool: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values with what follows from them. For perftest: this node's first RDMA device, or the one that is
    given, and its kind of connection; EFA has no reliable connections, but reliable datagrams (SRD). Raises
    NotInstalledError, PairingError.
    """
    if tool in NIXLBENCH:
        return nixlbench_sides.settings(tool, values)
    if tool not in PERFTEST:
        return values
    there = sorted(path.name for path in machine.RDMA.iterdir()) if machine.RDMA.is_dir() else []
    device = values["device"] or next(iter(there), "")
    if not device:
        raise NotInstalledError(f"{tool}: there is no RDMA device: enable EFA, or load its driver")
    return {**values, "device": device, "connection": "SRD" if fabric.kind(device) == "efa" else "RC"}


def measured(tool: str, values: Mapping[str, Any]) -> tuple[Parsed, dict[str, Any]]:
    """The record of a client in two parts: what the tool measured, and how. Raises NotInstalledError,
    PairingError.
    """
    values = resolved(tool, values)
    argv = command_line(tool, "client", values)
    until = time.monotonic() + RETRY_FOR_S
    while True:
        began, before = time.time(), fabric.counters()
        if tool in NIXLBENCH:
            status, output, errors = nixlbench_sides.initiate(argv, values)
        else:
            status, output, errors = output_of(argv, values["timeout"])
        again = (status != 0 or '"error"' in output) and REFUSED.search(output + errors)
        if not again or time.monotonic() > until:
            break
        time.sleep(RETRY_DELAY_S)
    reason = f": {last_words(errors)}" if errors.strip() else ""
    doubts = [] if status == 0 else [f"{tool} ended with status {status}{reason}"]
    if status is None:
        doubts = ["{} did not end within {:g} s".format(tool, values["timeout"])]
    figures = record(tool)
    try:
        if tool in NIXLBENCH:
            figures = nixlbench_sides.figures_of(tool, parser_of(nixlbench_sides.TOOL)(output), values)
        else:
            figures = parser_of(tool)(output, **({"size": values["size"]} if tool in SIZED else {}))
    except NotAResult as error:
        doubts.append(f"no result of {tool}: {error if output.strip() else last_words(errors)}")
    asked = fabric.asked(_provider(tool, values), values["peer"])
    crossed = fabric.proof(before, fabric.counters(), figures, asked)
    doubts += fabric.doubts(crossed)
    return figures, node_record.made(
        peer=values["peer"],
        fabric=crossed,
        client_argv=argv,
        server_argv=commands.words(tool, "server", values),
        client_status=status,
        started_at=began,
        duration_s=round(time.time() - began, 3),
        memory=values["memory"] if tool in ("ucx_perftest", *NIXLBENCH) else "host",
        valid=not doubts,
        doubts=doubts,
        output=output,
        errors=errors,
    )


def _over_ucx(tool: str, values: Mapping[str, Any]) -> bool:
    return tool == "ucx_perftest" or (tool in NIXLBENCH and values["backend"] == "UCX")


def _provider(tool: str, values: Mapping[str, Any]) -> str:
    """The fabric that the tool is told to use."""
    if _over_ucx(tool, values):
        transports = os.environ["UCX_TLS"].split(",")
        return "efa" if "srd" in transports else transports[0]
    if tool in PERFTEST:
        return fabric.kind(str(values["device"]))
    return "tcp" if tool == "iperf3" else str(values["provider"])

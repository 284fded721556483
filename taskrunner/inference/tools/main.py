"""Run one side of a tool that measures between two nodes; the client writes a record of what both did."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from ..circumstances import machine
from ..output import write
from . import commands, fabric
from .reading import NotAResult, Parsed, asked_size, last_words, record
from .registry import SIZED
from .registry import parser as parser_of
from .text import table

VERSION = 1
REFUSED = re.compile(r"Connection refused|unable to (?:connect to server|send control message)")
"""What a client says whose server is not there yet; none of them tries again by itself."""
RETRY_FOR_S, RETRY_DELAY_S = 60.0, 1.0
PLACES = ("/opt/amazon/efa/bin", "/usr/local/bin")
"""Where tools are that a login shell finds, and this may not."""


def size(text: str) -> int:
    """The bytes of a size with a suffix, which the tools themselves ignore. Raises what argparse reports."""
    try:
        return asked_size(text)
    except NotAResult as error:
        raise argparse.ArgumentTypeError(str(error)) from error


OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("--peer", str, "127.0.0.1", "the server's address"),
    ("--port", int, 18600, "the server's port"),
    ("--size", size, 65536, "bytes of a message; K, M and G are powers of 1,024"),
    ("--iterations", int, 1000, "messages"),
    ("--provider", str, "tcp", "what libfabric or UCX uses: tcp, efa"),
    ("--streams", int, 1, "streams of iperf3"),
    ("--seconds", int, 10, "seconds that iperf3 measures"),
    ("--omit", int, 2, "seconds that iperf3 leaves out before"),
    ("--test", str, "tag_lat", "the test of ucx_perftest"),
    ("--memory", str, "host", "memory of ucx_perftest: host, cuda"),
    ("--timeout", float, 120.0, "seconds in which the tool must end: peers that disagree wait forever"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("side", choices=("server", "client"))
    parser.add_argument("tool", choices=tuple(commands.TOOLS), metavar="TOOL")
    for name, kind, default, text in OPTIONS:
        parser.add_argument(name, type=kind, default=default, help=f"{text} ({default})")
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="where the client's record goes")


def main(args: argparse.Namespace) -> int:
    """Become the server, or measure; 1 when there is no result."""
    argv = commands.words(args.tool, args.side, vars(args))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *PLACES])
    program = shutil.which(argv[0], path=path)
    if program is None:
        package = commands.TOOLS[args.tool].package
        hint = f": apt-get install {package}" if package else ""
        print(f"{argv[0]} is not installed{hint}", file=sys.stderr)
        return 127
    argv[0] = program
    if args.tool == "ucx_perftest":
        # Left alone it takes shared memory between two processes of one machine, also across containers.
        os.environ.setdefault("UCX_TLS", commands.ucx_transports(args.provider, args.memory))
    print("$ " + shlex.join(argv), flush=True)
    if args.side == "server":
        os.execv(program, argv)
    figures, about = measured(argv, args)
    if args.output:
        write(args.output, json.dumps({**figures, **about}, indent=1))
    for line in table(figures) if about["valid"] else about["doubts"]:
        print(line)
    return 0 if about["valid"] else 1


def measured(argv: list[str], args: argparse.Namespace) -> tuple[Parsed, dict[str, Any]]:
    """The record of a client in two parts: what the tool measured, and how."""
    until = time.monotonic() + RETRY_FOR_S
    while True:
        began, before = time.time(), fabric.counters()
        status, output, errors = _run(argv, args.timeout)
        again = (status != 0 or '"error"' in output) and REFUSED.search(output + errors)
        if not again or time.monotonic() > until:
            break
        time.sleep(RETRY_DELAY_S)
    doubts = [] if status == 0 else [f"{args.tool} ended with status {status}"]
    if status is None:
        doubts = [f"{args.tool} did not end within {args.timeout:g} s"]
    figures = record(args.tool)
    try:
        options = {"size": args.size} if args.tool in SIZED else {}
        figures = parser_of(args.tool)(output, **options)
    except NotAResult as error:
        doubts.append(f"no result of {args.tool}: {error if output.strip() else last_words(errors)}")
    crossed = fabric.proof(before, fabric.counters(), figures, fabric.asked(_provider(args), args.peer))
    doubts += fabric.doubts(crossed)
    return figures, {
        "kind": "low-level",
        "version": VERSION,
        "node": platform.node(),
        "peer": args.peer,
        "instance_type": machine.about()["instance_type"] or None,
        "fabric": crossed,
        "client_argv": argv,
        "server_argv": commands.words(args.tool, "server", vars(args)),
        "client_status": status,
        "started_at": began,
        "duration_s": round(time.time() - began, 3),
        "memory": args.memory if args.tool == "ucx_perftest" else "host",
        "valid": not doubts,
        "doubts": doubts,
        "output": output,
        "errors": errors,
    }


def _provider(args: argparse.Namespace) -> str:
    """The fabric that the tool is told to use."""
    if args.tool == "ucx_perftest":
        return "efa" if "srd" in os.environ["UCX_TLS"].split(",") else os.environ["UCX_TLS"].partition(",")[0]
    return "tcp" if args.tool == "iperf3" else str(args.provider)


def _run(argv: list[str], timeout: float) -> tuple[int | None, str, str]:
    """Exit status (None: it was ended), stdout and stderr: rows are in the one, causes in the other."""
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
            return process.returncode, _text(output), _text(errors)
        except subprocess.TimeoutExpired as error:
            return None, _text(error.stdout), _text(error.stderr)
        finally:
            # Whatever it has started; and when this is interrupted.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")

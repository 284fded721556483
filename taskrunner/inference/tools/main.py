"""Run one side of a tool that measures between two nodes; the client writes a record of what both did."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from typing import Any

from ..output import write
from . import commands
from .measure import NotInstalledError, command_line, measured
from .reading import NotAResult, asked_size
from .text import table


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
    ("--device", str, "", "RDMA device of perftest's ib_send_bw and the like; empty: the first one"),
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
        parser.add_argument(
            name, type=kind, default=default, help=f"{text} ({default})" if default != "" else text
        )
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="where the client's record goes")


def main(args: argparse.Namespace) -> int:
    """Become the server, or measure; 1 when there is no result."""
    values = vars(args)
    try:
        argv = command_line(args.tool, args.side, values)
        print("$ " + shlex.join(argv), flush=True)
        if args.side == "server":
            os.execv(argv[0], argv)
        figures, about = measured(args.tool, values)
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 127
    if args.output:
        write(args.output, json.dumps({**figures, **about}, indent=1))
    for line in table(figures) if about["valid"] else about["doubts"]:
        print(line)
    return 0 if about["valid"] else 1

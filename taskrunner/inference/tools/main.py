"""Run one side of a tool that measures between two nodes; the client writes a record of what both did."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from . import commands, nixlbench_sides, node_record
from .commands import NIXLBENCH
from .measure import NotInstalledError, command_line, measured, resolved
from .options import add
from .text import table


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("side", choices=("server", "client"))
    parser.add_argument("tool", choices=tuple(commands.TOOLS), metavar="TOOL")
    add(parser)
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="where the client's record goes")


def main(args: argparse.Namespace) -> int:
    """Become the server, or measure; 1 when there is no result."""
    try:
        values = resolved(args.tool, vars(args))
        argv = command_line(args.tool, args.side, values)
        print("$ " + shlex.join(argv), flush=True)
        if args.side == "server" and args.tool in NIXLBENCH:
            argv += nixlbench_sides.await_initiator(values)
            print("$ " + shlex.join(argv), flush=True)
        if args.side == "server":
            os.execv(argv[0], argv)
        figures, about = measured(args.tool, values)
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 127
    except nixlbench_sides.PairingError as error:
        print(error, file=sys.stderr)
        return 2
    shown = table(figures) if about["valid"] else about["doubts"]
    node_record.tell({**figures, **about}, shown, args.output)
    return 0 if about["valid"] else 1

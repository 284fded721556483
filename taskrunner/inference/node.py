"""The commands of this package on a node; `taskrunner` has the same."""

from __future__ import annotations

import argparse

from .bench import main as bench
from .circumstances import main as sample
from .proxy import main as proxy
from .serving import main as serve
from .tune import main as tune

COMMANDS = {"bench": bench, "proxy": proxy, "sample": sample, "serve": serve, "tune": tune}


def main(argv: list[str]) -> int:
    """Run one of them; returns its exit status."""
    parser = argparse.ArgumentParser(prog="inference")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.arguments(commands.add_parser(name, help=module.__doc__))
    args = parser.parse_args(argv)
    return int(COMMANDS[args.command].main(args))

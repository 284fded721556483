"""What libfabric offers on this node, by fi_info."""

from __future__ import annotations

import argparse
import sys

from . import node_record
from .commands import TOOLS
from .process import find, output_of
from .reading import NotAResult, last_words
from .registry import parser as parser_of

PATIENCE_S = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("--provider", default="efa", help="the provider that must be there (efa)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where the record goes")


def main(args: argparse.Namespace) -> int:
    """Ask, and record; 1 where the provider is missing."""
    program = find("fi_info")
    if program is None:
        package = TOOLS["fi_pingpong"].package
        print(f"fi_info is not installed: apt-get install {package}", file=sys.stderr)
        return 127
    status, output, errors = output_of([program, "-p", args.provider, "-t", "FI_EP_RDM"], PATIENCE_S)
    try:
        figures = parser_of("fi_info")(output)
    except NotAResult as error:
        said = last_words(errors) if status else str(error)
        print(f"libfabric has no provider {args.provider!r} here: {said}", file=sys.stderr)
        return 1
    lines = (f"{name}: {', '.join(devices)}" for name, devices in figures["devices"].items())
    node_record.tell({**figures, **node_record.made("providers", valid=True)}, lines, args.output)
    return 0

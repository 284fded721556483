"""The proxy as a command: `taskrunner proxy --prefill URL --decode URL`, and the same on nodes."""

from __future__ import annotations

import argparse
import sys

USAGE, UNREACHABLE = 2, 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    add = parser.add_argument
    add("--prefill", action="append", default=[], metavar="URL", help="a prefill server; several take turns")
    add("--decode", action="append", default=[], metavar="URL", help="a decode server, or one that does both")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="0: any that is free (8000)")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds for an answer (600)")
    add(
        "--drain",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds to end what runs, on SIGTERM (30)",
    )
    add("--log", default="", metavar="FILE", help="a line of JSON for each request: what happened when")


def main(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    import uvloop

    from .serve import Proxy, Settings

    if not args.decode:
        print("proxy: --decode URL is missing", file=sys.stderr)
        return USAGE
    try:
        proxy = Proxy(
            Settings(args.prefill, args.decode, args.host, args.port, args.timeout, args.drain, args.log)
        )
    except ValueError as error:
        print(f"proxy: {error}", file=sys.stderr)
        return USAGE
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(proxy.serve())
    except OSError as error:
        print(f"proxy: {args.host}:{args.port}: {error.strerror or error}", file=sys.stderr)
        return UNREACHABLE
    finally:
        loop.close()
    return 0

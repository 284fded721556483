"""The proxy as a command: `taskrunner proxy --prefill URL --decode URL`, and the same on nodes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import options
from ..endpoint import VLLM_KEY
from ..options import COUNT, PORT, SECONDS, SIZE
from .messages import UNREACHABLE, USAGE, say

WORKERS = options.number(0, 64, whole=True)
OPTIONS: tuple[options.Option, ...] = (
    ("--host", str, "127.0.0.1", "ADDRESS", "address to listen on"),
    ("--port", PORT, 8000, "N", "port to listen on; 0: any free port"),
    ("--timeout", SECONDS, 600.0, "S", "seconds to wait for a response"),
    ("--drain", SECONDS, 30.0, "S", "seconds for running requests to finish after SIGTERM"),
    ("--header-timeout", SECONDS, 10.0, "S", "seconds to receive the header of a request"),
    ("--body-timeout", SECONDS, 30.0, "S", "seconds a client may stall while sending or receiving"),
    ("--keepalive-timeout", SECONDS, 75.0, "S", "seconds to keep an idle connection open"),
    ("--max-header-size", SIZE, 32 << 10, "BYTES", "limit for the header of a request"),
    ("--max-body-size", SIZE, 32 << 20, "BYTES", "limit for the body of a request"),
    ("--max-buffered", SIZE, 64 << 20, "BYTES", "limit for all requests together"),
    ("--max-connections", COUNT, 4096, "N", "limit for client connections"),
    ("--workers", WORKERS, 0, "N", "processes that serve; 0: one for every four cores, at most eight"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    add = parser.add_argument
    add("--prefill", action="append", default=[], metavar="URL", help="a prefill server; several take turns")
    add("--decode", action="append", default=[], metavar="URL", help="a decode server, or one that does both")
    options.add(parser, OPTIONS)
    add("--log", default="", metavar="FILE", help="write a JSON line with the timings of each request")
    add(
        "--api-key-file",
        default="",
        metavar="FILE",
        help=f"file with the Bearer token required of clients and sent to the servers (${VLLM_KEY})",
    )


def main(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from . import serve, workers
    from .proxy import Settings

    if not args.decode:
        say("--decode URL is missing")
        return USAGE
    names = {option[2:].replace("-", "_") for option, *_ in OPTIONS}
    try:
        settings = Settings(
            args.prefill,
            args.decode,
            log=args.log,
            api_key=_key(args.api_key_file),
            **{name: getattr(args, name) for name in names},
        )
    except (ValueError, OSError) as error:
        say(str(error))
        return USAGE
    settings.workers = settings.workers or workers.automatic()
    try:
        listeners = serve.listening(settings)
    except OSError as error:
        say(f"{args.host}:{args.port}: {error.strerror or error}")
        return UNREACHABLE
    if settings.workers > 1:
        return workers.run(settings, listeners)
    return serve.run(lambda proxy: serve.alone(proxy, listeners), settings)


def _key(file: str) -> str:
    """The key that is asked for, "" for none; never an argument, which everybody on the machine can read."""
    key = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get(VLLM_KEY, "")
    if file and not key:
        raise ValueError(f"{file}: contains no key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("the API key contains characters that are not allowed in an HTTP header")
    return key

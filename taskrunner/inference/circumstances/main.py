"""A sampler of this node: `taskrunner sample`. It answers to a benchmark that measures servers here."""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .. import options
from ..endpoint import VLLM_KEY
from .sampler import Sampler
from .servers import look

FAILED = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen address (127.0.0.1)")
    parser.add_argument("--port", type=options.PORT, default=8390, metavar="N", help="port (8390; 0: any)")
    parser.add_argument(
        "--server",
        type=options.PORT,
        action="append",
        default=[],
        metavar="PORT",
        help="port of a server here that is measured: its processes are no foreign load",
    )
    parser.add_argument(
        "--own", type=options.COUNT, action="append", default=[], metavar="PID", help=argparse.SUPPRESS
    )


def main(args: argparse.Namespace) -> int:
    """Sample until it is told to end."""
    sampler, over = Sampler(args.server, args.own), threading.Event()
    try:
        server = ThreadingHTTPServer((args.host, args.port), _handler(sampler))
    except OSError as error:
        print(f"sample: cannot listen on {args.host}:{args.port}: {error.strerror}", file=sys.stderr)
        return FAILED
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    if not sys.stdin.isatty() and args.own:
        threading.Thread(target=_until_left, args=(over,), daemon=True).start()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"sample: ready on {args.host}:{server.server_address[1]}", flush=True)
    sampler.run(over)
    return 0


def _until_left(over: threading.Event) -> None:
    """A sampler that belongs to one measurement ends with it: then its stdin does."""
    with contextlib.suppress(OSError):
        os.read(0, 1)
    over.set()


def _handler(sampler: Sampler) -> type[BaseHTTPRequestHandler]:
    key = os.environ.get(VLLM_KEY, "")

    class Handler(BaseHTTPRequestHandler):
        """`/health`: its clock. `/mark`: take a sample now. `/window?begin=T&end=T`: what was between two
        marks. `/servers`: what can be seen of the servers.
        """

        timeout = 30
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            if key and not hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {key}"):
                return self._answer(401, {"error": "the key is missing or wrong"})
            parts = urlsplit(self.path)
            if parts.path == "/health":
                return self._answer(200, {"now": time.time()})
            if parts.path == "/mark":
                return self._answer(200, {"t": sampler.take(mark=True)})
            if parts.path == "/servers":
                return self._answer(200, {port: look(pid) for port, pid in sampler.servers.items()})
            if parts.path == "/window":
                given = parse_qs(parts.query)
                try:
                    begin, end = (float(given[name][0]) for name in ("begin", "end"))
                except (KeyError, ValueError):
                    return self._answer(400, {"error": "expected /window?begin=SECONDS&end=SECONDS"})
                return self._answer(200, sampler.window(begin, end))
            return self._answer(404, {"error": f"no {parts.path}"})

        def _answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    return Handler

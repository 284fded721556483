"""Where the nodes of a sweep meet: a small server of words by name, kept on disk while it restarts.

Protocol: HTTP; GET /words is a JSON object, PUT /words/NAME with a text sets one word, once: whoever sets it
again to something else gets 409. A token in the header Authorization is required.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from ..output import write
from .measured import DIRECT, is_up

NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
LONGEST = 4096
PAUSE_S = 0.5
TIMEOUT_S = 5.0
TOKEN = "RENDEZVOUS_TOKEN"
"""Environment variable with the token: arguments can be read by other users."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--state", required=True, metavar="FILE", help="where the words are kept")
    for verb in ("say", "wait"):
        one = verbs.add_parser(verb)
        one.add_argument("--url", required=True)
        one.add_argument("name")
        if verb == "say":
            one.add_argument("word")
        else:
            one.add_argument("--for", dest="wanted", default="", help="succeed with this word alone")
            one.add_argument(
                "--while", dest="alive", default="", metavar="URL", help="fail when this is down"
            )
            one.add_argument("--unless", default="", metavar="NAME", help="fail when this is said")
        one.add_argument("--timeout", type=float, default=604_800.0, help="seconds")
        one.add_argument("--patience", type=float, default=3600.0, help="seconds without an answer")
    up = verbs.add_parser("up")
    up.add_argument("url")


def main(args: argparse.Namespace) -> int:
    """Serve; or say a word; or wait for one, print it, and fail unless it is wanted; or ask for a server."""
    if args.verb == "up":
        return 0 if is_up(args.url) else 1
    if args.verb == "serve":
        return serve(args.host, args.port, Path(args.state))
    until = time.monotonic() + args.timeout
    if args.verb == "say":
        return _say(args.url, args.name, args.word, time.monotonic() + min(args.timeout, args.patience))
    return _wait(args, until)


def serve(host: str, port: int, state: Path) -> int:
    """Keep words for the nodes."""
    words: dict[str, str] = json.loads(state.read_text()) if state.exists() else {}
    lock = threading.Lock()
    expected = "Bearer " + os.environ.get(TOKEN, "")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self._refused():
                return
            with lock:
                self._answer(200, json.dumps(words))

        def do_PUT(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            word = self.rfile.read(min(length, LONGEST)).decode("utf-8", "replace")
            name = self.path.rpartition("/")[2]
            if self._refused():
                return
            if not NAME.fullmatch(name) or length > LONGEST:
                self._answer(400, "a name of letters and digits, and a word of at most 4096 bytes")
                return
            with lock:
                if words.get(name, word) != word:
                    self._answer(409, words[name])
                    return
                words[name] = word
                # Before anybody hears it.
                write(str(state), json.dumps(words))
                self._answer(200, word)

        def _refused(self) -> bool:
            refused = self.headers.get("Authorization") != expected
            if refused:
                self._answer(401, "another token")
            return refused

        def _answer(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the nodes ask twice a second."""

    with http.server.ThreadingHTTPServer((host, port), Handler) as server:
        print(f"rendezvous on {host}:{server.server_address[1]}", flush=True)
        server.serve_forever()
    return 0


def _request(url: str, body: bytes | None = None) -> str:
    method = "PUT" if body is not None else "GET"
    request = urllib.request.Request(url, body, method=method)  # noqa: S310 - of a sweep's own nodes
    request.add_header("Authorization", "Bearer " + os.environ.get(TOKEN, ""))
    with DIRECT.open(request, timeout=TIMEOUT_S) as response:
        return str(response.read().decode())


def _say(url: str, name: str, word: str, until: float) -> int:
    while True:
        try:
            _request(f"{url}/words/{name}", word.encode())
        except urllib.error.HTTPError as error:
            other = error.read().decode("utf-8", "replace")
            print(f"{name} is {other!r} already" if error.code == 409 else other, file=sys.stderr)
            return 1
        except OSError as error:
            if time.monotonic() > until:
                print(f"{url}: {error}", file=sys.stderr)
                return 1
            time.sleep(PAUSE_S)
        else:
            return 0


def _wait(args: argparse.Namespace, until: float) -> int:
    """A cut between the nodes is waited out, as long as the patience lasts."""
    problem, heard = f"nobody has said {args.name}", time.monotonic()
    while time.monotonic() < min(until, heard + args.patience):
        try:
            words = json.loads(_request(f"{args.url}/words"))
        except urllib.error.HTTPError as error:
            print(error.read().decode("utf-8", "replace"), file=sys.stderr)
            return 1
        except (OSError, ValueError) as error:
            problem = f"{args.url}: {error}"
        else:
            heard = time.monotonic()
            if args.name in words:
                print(words[args.name])
                return 0 if args.wanted in ("", words[args.name]) else 1
            if args.unless in words:
                print(f"{args.unless}: {words[args.unless]}", file=sys.stderr)
                return 1
            if args.alive and not is_up(args.alive):
                print(f"{args.alive} does not answer", file=sys.stderr)
                return 1
        time.sleep(PAUSE_S)
    print(problem, file=sys.stderr)
    return 1

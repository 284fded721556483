"""What a response says, read after the run: tokens and their times, the server's own counts, and what went
wrong.

Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html; a stream ends with
`data: [DONE]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httptools

from ..results.sample import Sample, failed
from .connection import Exchange

END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class _Body:
    """Takes a response apart: headers, and which bytes of the body came when."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.pieces: list[tuple[float, bytes]] = []
        self.now = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.pieces.append((self.now, data))


def read(exchange: Exchange, prompt_tokens: int = 0, output_tokens: int = 0) -> Sample:
    """What an exchange was; the counts of tokens are checked where they are given."""
    start = exchange.scheduled
    sample = Sample(exchange.number, exchange.began - start, began=start, ended=exchange.end)
    body = _Body()
    parser = httptools.HttpResponseParser(body)
    try:
        for body.now, data in exchange.pieces:
            parser.feed_data(data)
    except httptools.HttpParserError:
        pass  # `broken` tells
    sample.headers = body.headers
    if exchange.status not in (0, 200):
        said = b"".join(data for _, data in body.pieces).decode("utf-8", "replace")
        return failed(sample, f"http_{exchange.status}", said)
    arrivals: list[float] = []
    usage: dict[str, Any] = {}
    texts: list[str] = []
    over = False
    for at, data in events(body.pieces):
        if data == b"[DONE]":
            over = True
            continue
        try:
            event = json.loads(data)
        except ValueError:
            return failed(sample, "error_event", f"not JSON: {data[:200]!r}")
        if "error" in event:
            return failed(sample, "error_event", json.dumps(event["error"]))
        usage = event.get("usage") or usage
        for choice in event.get("choices", ())[:1]:
            text = choice.get("text")
            if text is None:
                text = choice.get("delta", {}).get("content")
            # A token may have no text of its own; a last chunk may bring only why it ends.
            if text or (text == "" and choice.get("finish_reason") in (None, "length")):
                arrivals.append(at)
                texts.append(text)
    sample.text, sample.chunks = "".join(texts), len(arrivals)
    if exchange.broken:
        kind = "timeout" if exchange.broken.startswith("response not complete") else "connection"
        return failed(sample, kind, exchange.broken)
    if not over:
        return failed(sample, "incomplete", "the stream ends without [DONE]")
    if not arrivals:
        return failed(sample, "no_tokens", "the stream has no tokens")
    sample.ttft, sample.e2e = arrivals[0] - start, arrivals[-1] - start
    sample.itl = [later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False)]
    sample.prompt_tokens = usage.get("prompt_tokens", 0)
    sample.output_tokens = usage.get("completion_tokens", 0)
    if not usage:
        return failed(sample, "no_usage", "the server reports no usage: tokens cannot be counted")
    for kind, wanted, found in (
        ("prompt_length", prompt_tokens, sample.prompt_tokens),
        ("output_length", output_tokens, sample.output_tokens),
    ):
        if wanted and found != wanted:
            return failed(sample, kind, f"{found} tokens, not {wanted}")
    return sample


def events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each event, with the time of the bytes that completed it."""
    rest = b""
    for at, data in pieces:
        rest += data
        if b"\n\n" not in rest and b"\r" not in rest:
            continue
        *whole, rest = END.split(rest)
        for event in whole:
            lines = [line[5:].lstrip(b" ") for line in event.splitlines() if line.startswith(b"data:")]
            if lines:
                yield at, b"\n".join(lines)

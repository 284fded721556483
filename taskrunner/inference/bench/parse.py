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
from .lateness import Lateness
from .load import TOO_LATE

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


def read(
    exchange: Exchange, prompt_tokens: int = 0, output_tokens: int = 0, lateness: Lateness | None = None
) -> Sample:
    """What an exchange was; the counts of tokens are checked where they are given. `lateness` is how late the
    client may have noted what came.
    """
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
        body_text = b"".join(data for _, data in body.pieces).decode("utf-8", "replace")
        return failed(sample, f"http_{exchange.status}", body_text)
    arrivals: list[float] = []
    usage: dict[str, Any] = {}
    texts: list[str] = []
    over = False
    closing: float | None = None
    for at, data in events(body.pieces):
        if data == b"[DONE]":
            over = True
            continue
        try:
            event = json.loads(data)
        except ValueError:
            return failed(sample, "error_event", f"not JSON: {data[:200]!r}")
        if not isinstance(event, dict) or "error" in event:
            body_text = event["error"] if isinstance(event, dict) else event
            return failed(sample, "error_event", json.dumps(body_text))
        counted = event.get("usage")
        usage = counted if isinstance(counted, dict) else usage
        text, why = _choice(event)
        # A token may have no text of its own; a last chunk may bring only why it ends.
        if text or (text == "" and why is None):
            arrivals.append(at)
            texts.append(text)
        elif text == "" and why == "length":
            closing = at
    if closing is not None and len(arrivals) < _count(usage, "completion_tokens"):
        arrivals.append(closing)
    sample.text, sample.chunks = "".join(texts), len(arrivals)
    if exchange.broken:
        kind = "timeout" if exchange.broken.startswith(TOO_LATE) else "connection"
        return failed(sample, kind, exchange.broken)
    if not over:
        whole = b"".join(data for _, data in body.pieces).lstrip()
        if not arrivals and whole.startswith(b"{"):
            # A proxy whose status is sent before it knows that a server has failed.
            return failed(sample, "error_event", whole.decode("utf-8", "replace"))
        return failed(sample, "incomplete", "the stream ends without [DONE]")
    if not arrivals:
        return failed(sample, "no_tokens", "the stream has no tokens")
    sample.ttft, sample.e2e = arrivals[0] - start, arrivals[-1] - start
    sample.itl = [later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False)]
    sample.prompt_tokens = _count(usage, "prompt_tokens")
    sample.output_tokens = _count(usage, "completion_tokens")
    if lateness is not None and lateness.stalls:
        sample.late = [lateness.at(noted) for noted in arrivals]
    if not usage:
        return failed(sample, "no_usage", "the server reports no usage: tokens cannot be counted")
    for kind, wanted, value in (
        ("prompt_length", prompt_tokens, sample.prompt_tokens),
        ("output_length", output_tokens, sample.output_tokens),
    ):
        if wanted and value != wanted:
            return failed(sample, kind, f"{value} tokens, not {wanted}")
    return sample


def _choice(event: dict[str, Any]) -> tuple[str | None, str | None]:
    """The text of an event's first choice and why it ends; None for what it does not have."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return None, None
    delta = choice.get("delta")
    text = choice.get("text")
    if text is None and isinstance(delta, dict):
        text = delta.get("content")
    why = choice.get("finish_reason")
    return (text if isinstance(text, str) else None), (None if why is None else str(why))


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


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

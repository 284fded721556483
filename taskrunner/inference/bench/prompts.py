"""Prompts of exactly so many tokens, and the requests that carry them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..endpoint import Endpoint
from ..http_client import NotServed, ask

TEXT = (
    "the quick brown fox jumps over a lazy dog while seven wizards mix bright potions near old stone bridges "
)


class Shape(NamedTuple):
    """What each request is: `shared` tokens at its beginning are the same for all, the others its own.

    So with 0 nothing of a prompt is in a prefix cache, and with all of them everything.
    """

    model: str
    prompt_tokens: int
    output_tokens: int
    shared: int = 0
    temperature: float = 0.0
    seed: int = 0


def vocabulary(server: Endpoint, model: str, timeout: float) -> list[int]:
    """Token ids that this server's model surely knows: those of some text. Raises OSError, NotServed."""
    sample = " ".join(f"{word} {number}" for number, word in enumerate(TEXT.split() * 4))
    answer = ask(
        server, "/tokenize", {"model": model, "prompt": sample, "add_special_tokens": False}, timeout
    )
    return sorted(set(answer["tokens"]))


def prompts(shape: Shape, ids: Sequence[int], count: int, first: int = 0) -> list[list[int]]:
    """Random prompts, each its own from its first token after the shared ones on; the same for the same
    seed.
    """
    whole = random.Random(f"{shape.seed} shared")
    shared = [whole.choice(ids) for _ in range(shape.shared)]
    made = []
    for number in range(first, first + count):
        own = random.Random(f"{shape.seed} {number}")
        made.append(shared + [own.choice(ids) for _ in range(shape.prompt_tokens - shape.shared)])
    return made


def bodies(shape: Shape, tokens: Sequence[list[int]], server: Endpoint, text: bool) -> list[bytes]:
    """The JSON of each request. As `text`, the prompt is made with the server's own tokenizer. Raises
    OSError.
    """
    fields: dict[str, Any] = {
        "model": shape.model,
        "max_tokens": shape.output_tokens,
        "min_tokens": shape.output_tokens,
        "ignore_eos": True,
        "temperature": shape.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return [
        json.dumps({"prompt": _text(server, shape.model, prompt) if text else prompt, **fields}).encode()
        for prompt in tokens
    ]


def _text(server: Endpoint, model: str, prompt: list[int]) -> str:
    """A text that the server's tokenizer makes exactly as many tokens of."""
    wanted, tokens = len(prompt), list(prompt)
    for _ in range(20):
        text = str(ask(server, "/detokenize", {"model": model, "tokens": tokens})["prompt"])
        again = ask(server, "/tokenize", {"model": model, "prompt": text})["tokens"]
        if len(again) == wanted:
            return text
        tokens = again[:wanted] if len(again) > wanted else again + prompt[: wanted - len(again)]
    raise NotServed(
        f"{server.url}: no text of exactly {wanted} tokens found; prompts of token ids avoid this"
    )


def framed(server: Endpoint, body: bytes, request_id: str, path: str = "/v1/completions") -> bytes:
    """A whole HTTP request."""
    own = "".join(f"{name}: {value}\r\n" for name, value in server.headers().items())
    head = (
        f"POST {server.base}{path} HTTP/1.1\r\nHost: {server.authority}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nX-Request-Id: {request_id}\r\n{own}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body

"""What goes to prefill and what to decode: the two steps of vLLM's NixlConnector.

The prefill server is asked for one token and answers with `kv_transfer_params`, which go to the decode
server as they are, with the request as it came. (vLLM: docs/features/nixl_connector_usage.md and its
example proxy.)
"""

from __future__ import annotations

import json
from typing import Any

PATHS = ("/v1/completions", "/v1/chat/completions")
KEY = "kv_transfer_params"
ASKED = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
    "remote_host": None, "remote_port": None,
}  # fmt: skip
NEEDED = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")


class Unusable(Exception):
    """What came cannot be handed on. The text is for the client."""


def request_of(body: bytes) -> dict[str, Any]:
    """The request in a body. Raises Unusable."""
    try:
        found = json.loads(body)
    except ValueError as error:
        raise Unusable(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unusable("the body is not a JSON object")
    if KEY in found:
        raise Unusable(f"{KEY} is the proxy's to set")
    return found


def for_prefill(request: dict[str, Any]) -> bytes:
    """The same request for one token, not streamed."""
    asked = dict(request)
    for name in ("stream_options", "min_tokens", "min_completion_tokens"):
        asked.pop(name, None)
    asked.update({"stream": False, "max_tokens": 1, KEY: ASKED})
    if "max_completion_tokens" in asked:
        asked["max_completion_tokens"] = 1
    return json.dumps(asked).encode()


def params_of(answer: bytes) -> dict[str, Any]:
    """What the decode server needs, of prefill's answer. Raises Unusable: a part of it would kill a decode
    server, and without it decode would compute the prompt itself, unseen.
    """
    try:
        found = json.loads(answer).get(KEY)
    except (ValueError, AttributeError) as error:
        raise Unusable(f"prefill's answer is not a JSON object: {error}") from error
    if not isinstance(found, dict):
        raise Unusable(f"prefill's answer has no {KEY}: is its server a producer with a KV connector?")
    missing = [name for name in NEEDED if found.get(name) in (None, "", [])]
    if missing:
        raise Unusable(f"prefill's {KEY} has no {', '.join(missing)}")
    return found


def for_decode(body: bytes, params: dict[str, Any]) -> bytes:
    """The request as it came, with the parameters at its end."""
    whole = body.rstrip()[:-1].rstrip()
    comma = b"" if whole.endswith(b"{") else b","
    return whole + comma + json.dumps({KEY: params}).encode()[1:]

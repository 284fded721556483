"""What goes to prefill and what to decode: the two steps of vLLM's NixlConnector.

The prefill server is asked for one token and answers with `kv_transfer_params`, which go to the decode
server as they are, with the request as it came. (vLLM: docs/features/nixl_connector_usage.md and its
example proxy.) One such transfer is of exactly one sequence.
"""

from __future__ import annotations

from typing import Any

import msgspec

from . import checks
from .checks import Fields, Unusable, value_of

KEYS = ("kv_transfer_params", "ec_transfer_params")
"""Where a server is told to fetch what from which other one: nothing that a client may say."""
KEY = KEYS[0]
ASKED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
NEEDED = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
ANSWER_ONLY = {
    "logprobs",
    "logprob_token_ids",
    "best_of",
    "thinking_token_budget",
    *checks.FIELDS.keys() - {"max_tokens", "max_completion_tokens"},
}
"""What shapes the answer and not the prompt: prefill has no use for it, and may refuse it."""

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def request_of(body: bytes) -> Fields:
    """The request in a body. Raises Unusable."""
    try:
        if not body.isascii():
            body.decode()
        decoded = _decoder.decode(body)
    except RecursionError:
        raise Unusable("the body is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unusable(f"the body is not a JSON object in UTF-8: {error}") from error
    more = value_of(decoded, "vllm_xargs")
    for key in KEYS:
        if key in decoded or (isinstance(more, dict) and key in more):
            raise Unusable(f"{key} can be set by the proxy only")
    return decoded


def checked(path: str, fields: Fields) -> bool:
    """See that both servers can take a request, and that it is of one sequence; whether it is to be handed
    over. Raises Unusable.

    One that asks for the prompt's own probabilities is decode's alone: it computes the prompt anyway.
    """
    checks.check(path, fields)
    of_prompt = value_of(fields, "prompt_logprobs") is not None
    echoed = value_of(fields, "echo") is True and value_of(fields, "logprobs") is not None
    return not (of_prompt or echoed)


def for_prefill(fields: Fields, params: dict[str, Any] | None = None) -> bytes:
    """The same request for one token, not streamed; with `params`, as decode is asked for that."""
    asked: dict[str, Any] = {name: value for name, value in fields.items() if name not in ANSWER_ONLY}
    if value_of(fields, "tool_choice") != "none" and ("tools" in fields or "tool_choice" in fields):
        # Which tool is to be called shapes the answer; which there are, the prompt.
        asked["tool_choice"] = None
    asked.update({"stream": False, "max_tokens": 1, KEY: params or ASKED})
    if "max_completion_tokens" in asked:
        asked["max_completion_tokens"] = 1
    return _encoder.encode(asked)


def for_decode(fields: Fields, params: dict[str, Any]) -> bytes:
    """The request as it came, with the parameters."""
    return _encoder.encode({**fields, KEY: params})


def params_of(answer: bytes) -> dict[str, Any]:
    """What the decode server needs, of prefill's answer. Raises Unusable: a part of it would kill a decode
    server, and without it decode would compute the prompt itself, unseen.
    """
    try:
        params = msgspec.json.decode(answer).get(KEY)
    except (msgspec.MsgspecError, RecursionError, AttributeError) as error:
        raise Unusable(f"prefill's answer is not a JSON object: {error}") from error
    if not isinstance(params, dict):
        raise Unusable(f"prefill's answer has no {KEY}: its server must be a producer with a KV connector")
    missing = [name for name in NEEDED if params.get(name) in (None, "", [])]
    if missing:
        raise Unusable(f"prefill's {KEY} has no {', '.join(missing)}")
    return params

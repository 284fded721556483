"""What both servers of a pair can take: what decode would refuse once prefill has computed it would leave
blocks on prefill that nobody fetches. Types and ranges are those of OpenAI's API as vLLM checks it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PATHS = (COMPLETIONS, CHAT)
ONE = "only one sequence can be transferred: send a request for each"
ONE_OF_A_LIST = re.compile(rb'\[\s*(?:"[^"\\]*(?:\\.[^"\\]*)*"|\[[^][{}"]*\])\s*\]\s*', re.DOTALL)
MOST_TOKENS = 1 << 31
INT64 = 1 << 63
LARGEST_FIELD = 4 << 20
"""Bytes of one member, but for the prompt and the messages: what it becomes in memory is many times that."""


Fields = Mapping[str, msgspec.Raw]
"""A request, each member as it was written."""


class Unusable(Exception):
    """What came cannot be handed on. The text is for the client."""


@dataclass(frozen=True)
class Number:
    """A number between two others, which it may be."""

    low: float
    high: float
    whole: bool = False

    def __call__(self, value: Any) -> bool:
        if self.whole and isinstance(value, float) and value.is_integer():
            value = int(value)  # as 16.0, which other languages write, and vLLM takes
        kinds = (int,) if self.whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a{' whole' if self.whole else ''} number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Of:
    """Something that a function can tell."""

    words: str
    holds: Callable[[Any], bool]

    def __call__(self, value: Any) -> bool:
        return self.holds(value)

    def __str__(self) -> str:
        return self.words


def _list_of(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(one, value))


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS


BOOL = Of("true or false", lambda value: isinstance(value, bool))
TEXTS = Of("a non-empty string or list of strings", lambda value: _text(value) or _list_of(_text)(value))
TOKENS = Of("a list of token ids", _list_of(_token))
COUNT = Number(1, MOST_TOKENS, whole=True)
FORMATS = ("text", "json_object", "json_schema", "structural_tag")
FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "max_tokens": Number(0, MOST_TOKENS, whole=True),
    "max_completion_tokens": COUNT,
    "min_tokens": Number(0, MOST_TOKENS, whole=True),
    "n": Of(f"1; {ONE}", lambda value: value == 1 and Number(1, 1, whole=True)(value)),
    "use_beam_search": Of(f"false; {ONE}", lambda value: value is False),
    "stream": BOOL,
    "stream_options": Of(
        "an object of booleans",
        lambda value: (
            isinstance(value, dict) and all(item is None or isinstance(item, bool) for item in value.values())
        ),
    ),
    "stream_interval": COUNT,
    "temperature": Number(0, 1e6),
    "top_p": Of("a number above 0, at most 1", lambda value: value != 0 and Number(0, 1)(value)),
    "top_k": Number(-1, MOST_TOKENS, whole=True),
    "min_p": Number(0, 1),
    "presence_penalty": Number(-2, 2),
    "frequency_penalty": Number(-2, 2),
    "repetition_penalty": Of("a number above 0", lambda value: value != 0 and Number(0, 1e6)(value)),
    "length_penalty": Number(-1e6, 1e6),
    "seed": Number(-INT64, INT64 - 1, whole=True),
    "prompt_logprobs": Number(-1, 1 << 20, whole=True),
    "top_logprobs": Number(-1, 1 << 20, whole=True),
    "stop": TEXTS,
    "bad_words": TEXTS,
    "stop_token_ids": TOKENS,
    "allowed_token_ids": TOKENS,
    "logit_bias": Of(
        "an object of numbers by token id",
        lambda value: (
            isinstance(value, dict)
            and all(name.isascii() and name.isdigit() for name in value)
            and all(map(Number(-1e6, 1e6), value.values()))
        ),
    ),
    "echo": BOOL,
    "ignore_eos": BOOL,
    "include_stop_str_in_output": BOOL,
    "skip_special_tokens": BOOL,
    "spaces_between_special_tokens": BOOL,
    "parallel_tool_calls": BOOL,
    "return_token_ids": BOOL,
    "return_tokens_as_token_ids": BOOL,
    "response_format": Of(
        f"an object whose type is one of {', '.join(FORMATS)}",
        lambda value: isinstance(value, dict) and value.get("type") in FORMATS,
    ),
    "structured_outputs": Of("an object", lambda value: isinstance(value, dict)),
    "vllm_xargs": Of("an object", lambda value: isinstance(value, dict)),
}
"""What does not go to prefill, so that prefill would not refuse it; null is as good as absent."""


def check(path: str, fields: Fields) -> None:
    """Raises Unusable for what is not exactly one sequence, or would not be taken."""
    values: dict[str, Any] = {}
    for name, fits in FIELDS.items():
        value = values[name] = value_of(fields, name)
        if value is not None and not fits(value):
            raise Unusable(f"{name}: expected {fits}")
    logprobs = value_of(fields, "logprobs")
    right: Callable[[Any], bool] = Number(0, 1 << 20, whole=True) if path == COMPLETIONS else BOOL
    if logprobs is not None and not right(logprobs):
        raise Unusable(f"logprobs: expected {right}")
    _together(path, values, logprobs)
    if path == COMPLETIONS:
        _prompt(fields)
    else:
        _tool_choice(fields)


def _together(path: str, values: Mapping[str, Any], logprobs: Any) -> None:
    streamed = bool(values.get("stream"))
    echoes_alone = path == COMPLETIONS and values.get("echo") is True
    if values.get("max_tokens") == 0 and not echoes_alone:
        raise Unusable("max_tokens: expected at least 1")
    most = values.get("max_completion_tokens") or values.get("max_tokens")
    if most and (values.get("min_tokens") or 0) > most:
        raise Unusable("min_tokens is more than max_tokens")
    if values.get("prompt_logprobs") is not None and streamed:
        raise Unusable("prompt_logprobs cannot be used with stream")
    if path == CHAT and values.get("top_logprobs") and not logprobs:
        raise Unusable("top_logprobs needs logprobs")


def _prompt(fields: Fields) -> None:
    """One text, or one list of tokens, also as the only one of a list."""
    raw = bytes(fields.get("prompt", b"")).lstrip()
    embeds = value_of(fields, "prompt_embeds")
    if isinstance(embeds, list) and len(embeds) == 1:
        embeds = embeds[0]
    if isinstance(embeds, list) or (embeds is not None and raw not in (b"", b"null")):
        raise Unusable(f"prompt_embeds: expected one; {ONE}")
    # Looked at as text: what a long prompt becomes in memory is many times that.
    several = raw[:1] == b"[" and raw[1:].lstrip()[:1] in (b'"', b"[", b"{")
    if several and not ONE_OF_A_LIST.fullmatch(raw):
        raise Unusable(f"prompt: expected one string or one list of tokens; {ONE}")


def _tool_choice(fields: Fields) -> None:
    choice = value_of(fields, "tool_choice")
    if choice in (None, "none", "auto", "required"):
        if choice == "required" and not _names(fields):
            raise Unusable("tool_choice: there are no tools")
        return
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise Unusable("tool_choice: expected none, auto, required or a function")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if name not in _names(fields):
        raise Unusable("tool_choice: there is no such tool")


def _names(fields: Fields) -> list[Any]:
    tools = value_of(fields, "tools")
    listed = tools if isinstance(tools, list) else []
    functions = [tool.get("function") for tool in listed if isinstance(tool, dict)]
    return [function.get("name") for function in functions if isinstance(function, dict)]


def value_of(fields: Fields, name: str) -> Any:
    """The value of a member; None where it is not there. Raises Unusable."""
    if name not in fields:
        return None
    if memoryview(fields[name]).nbytes > LARGEST_FIELD:
        raise Unusable(f"{name}: larger than {LARGEST_FIELD >> 20} MiB")
    try:
        return msgspec.json.decode(fields[name])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unusable(f"{name}: {error}") from error

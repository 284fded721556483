"""What clients may ask of the proxy, and what becomes of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait_for
from tests.inference.conftest import Told, get
from tests.inference.raw import BODY, PARAMS, post, said, statuses

Start = Callable[..., Told]


@pytest.mark.parametrize(
    "body",
    [
        f'{{"prompt":"a",{PARAMS}}}',
        '{"prompt":"a","kv\\u005ftransfer_params":{}}',
        '{"kv_transfer_params":null,"prompt":"a"}',
        '{"prompt":"a","ec_transfer_params":{}}',
        '{"prompt":"a","vllm_xargs":{"kv_transfer_params":0}}',
        '{"prompt":["a","b"]}',
        '{"prompt":[[1,2],[3]]}',
        '{"prompt":"a","n":2}',
        '{"prompt":"a","n":"2"}',
        '{"prompt":"a","n":true}',
        '{"prompt":"a","use_beam_search":true}',
        '{"prompt_embeds":["a","b"]}',
        '{"prompt":"a","max_tokens":-5}',
        '{"prompt":"a","max_tokens":0}',
        '{"prompt":"a","max_tokens":"abc"}',
        '{"prompt":"a","max_tokens":2.5}',
        '{"prompt":"a","max_tokens":1e400}',
        '{"prompt":"a","max_tokens":2,"min_tokens":3}',
        '{"prompt":"a","temperature":-1}',
        '{"prompt":"a","temperature":NaN}',
        '{"prompt":"a","top_p":2}',
        '{"prompt":"a","top_p":"x"}',
        '{"prompt":"a","logprobs":-3}',
        '{"prompt":"a","stop":[1]}',
        '{"prompt":"a","stop":""}',
        '{"prompt":"a","seed":1e30}',
        '{"prompt":"a","stream":"yes"}',
        '{"prompt":"a","stream":true,"stream_options":[]}',
        '{"prompt":"a","response_format":{"type":"tea"}}',
        '{"prompt":"a","logit_bias":{"x":1}}',
        '{"prompt":"a","stop_token_ids":"x"}',
        '{"prompt":"a","prompt_logprobs":1,"stream":true}',
        '{"prompt":"a"',
        '{"prompt":"a"} x',
        "[]",
        "5",
        "",
        '{"a":' + "[" * 5000 + "]" * 5000 + "}",
        '{"a":"\ud800"}',
    ],
)
def test_what_is_not_one_sequence_or_not_taken_is_refused_before_prefill(
    behind: tuple[Told, Told, Told], body: str
) -> None:
    p, d, at = behind
    answer = said(at.url, post("/v1/completions", body.encode("utf-8", "surrogatepass")))
    assert statuses(answer) == [400]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["stage"] == "proxy"
    assert p.log()["requests"] == d.log()["requests"] == 0


@pytest.mark.parametrize(
    "body", [BODY.decode().encode("utf-16"), b"\xef\xbb\xbf" + BODY, b'{"prompt":"\xff"}']
)
def test_a_body_is_utf_8(behind: tuple[Told, Told, Told], body: bytes) -> None:
    p, _, at = behind
    assert statuses(said(at.url, post("/v1/completions", body))) == [400]
    assert p.log()["requests"] == 0


@pytest.mark.parametrize("prompt", ["a b", [1, 2, 3], ["a b"], [[1, 2, 3]]])
def test_one_sequence_however_it_is_written(behind: tuple[Told, Told, Told], prompt: Any) -> None:
    _, d, at = behind
    get(
        f"{at.url}/v1/completions", json.dumps({"model": "truth", "prompt": prompt, "max_tokens": 1}).encode()
    )
    assert d.log()["log"][0]["params"]["remote_block_ids"]


def test_prefill_is_asked_for_the_prompt_alone() -> None:
    from taskrunner.inference.proxy import kv_transfer

    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": "hé"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "stream": True,
        "stop": "x",
        "n": 1,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "max_completion_tokens": 9,
        "min_tokens": 3,
        "chat_template_kwargs": {"thinking": False},
        "temperature": 0.5,
        "cache_salt": "s",
    }
    fields = kv_transfer.request_of(json.dumps(asked).encode())
    assert kv_transfer.checked("/v1/chat/completions", fields)
    assert json.loads(kv_transfer.for_prefill(fields)) == {
        "model": "m",
        "messages": asked["messages"],
        "tools": asked["tools"],
        "tool_choice": None,
        "stream": False,
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "chat_template_kwargs": {"thinking": False},
        "cache_salt": "s",
        "kv_transfer_params": kv_transfer.ASKED,
    }
    assert json.loads(kv_transfer.for_decode(fields, {"a": 1})) == {**asked, "kv_transfer_params": {"a": 1}}
    none = kv_transfer.request_of(b'{"messages":[],"tools":[],"tool_choice":"none"}')
    assert json.loads(kv_transfer.for_prefill(none))["tool_choice"] == "none"


def test_who_has_no_key_gets_nothing(truth: Start, proxy: Start, tmp_path: Path) -> None:
    p, d = truth("--role", "prefill"), truth("--role", "decode")
    (tmp_path / "key").write_text("sesame\n")
    at = proxy("--prefill", p.url, "--decode", d.url, "--api-key-file", tmp_path / "key")
    for headers in (
        [],
        ["Authorization: Bearer other"],
        ["Authorization: Basic sesame"],
        ["x-api-key: sesame"],
    ):
        assert statuses(said(at.url, post("/v1/completions", BODY, *headers))) == [401]
        assert statuses(said(at.url, post("/tokenize", BODY, *headers))) == [401]
    assert p.log()["requests"] == 0
    assert statuses(said(at.url, post("/v1/completions", BODY, "Authorization: Bearer sesame"))) == [200]
    assert json.loads(get(f"{at.url}/health"))["status"] == "ok"


def test_ipv6(truth: Start, proxy: Start) -> None:
    p, d = truth("--role", "prefill"), truth("--role", "decode")
    at = proxy("--prefill", p.url, "--decode", d.url, "--host", "::1")
    assert at.url.startswith("http://[::1]:")
    with socket.create_connection(("::1", int(at.url.rpartition(":")[2])), timeout=5) as client:
        client.sendall(post("/v1/completions"))
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_connections_to_servers_are_used_again(truth: Start, proxy: Start) -> None:
    p, d = truth("--role", "prefill", "--ttft", 1), truth("--role", "decode", "--ttft", 1, "--gap", 1)
    at = proxy("--prefill", p.url, "--decode", d.url)
    ports = [int(server.url.rpartition(":")[2]) for server in (p, d)]

    def connections() -> set[tuple[str, str]]:
        """Those to the servers that are open or have been closed lately, also of somebody before."""
        lines = Path(f"/proc/{at.process.pid}/net/tcp").read_text().splitlines()[1:]
        found = [line.split()[1:4] for line in lines]
        return {
            (local, remote)
            for local, remote, state in found
            if int(remote.split(":")[1], 16) in ports and state in ("01", "06")
        }

    before = connections()
    for _ in range(12):
        assert statuses(said(at.url, post("/v1/completions"))) == [200]
    assert 2 <= len(connections() - before) <= 2 * at.workers


def test_blocks_that_decode_has_refused_are_released(truth: Start, proxy: Start) -> None:
    p = truth("--role", "prefill", "--ttft", 1)
    d = truth("--role", "decode", "--fault", "http_500")
    at = proxy("--prefill", p.url, "--decode", d.url)
    assert statuses(said(at.url, post("/v1/completions"))) == [500]
    # One for the client, and one that lets decode fetch what prefill keeps.
    wait_for(lambda: d.log()["requests"] >= 2)

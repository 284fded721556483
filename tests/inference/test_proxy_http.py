"""The proxy and raw HTTP: what a client may say, and what nobody gets through with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskrunner.inference.proxy.front import Front
from taskrunner.inference.proxy.request import Refused, Request, normal
from taskrunner.inference.proxy.serve import Proxy, Settings
from tests.conftest import wait_for
from tests.inference.conftest import Told, get

Start = Callable[..., Told]
PARAMS = '"kv_transfer_params":{"do_remote_prefill":true,"remote_host":"10.0.0.1","remote_port":1}'
BODY = b'{"model":"truth","prompt":"a b c","max_tokens":2}'


def said(url: str, *writes: bytes, wait: float = 5.0) -> bytes:
    """What comes back for some bytes, until the other end closes or is silent."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=wait) as client:
        for data in writes:
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
            time.sleep(0.01 * (len(writes) > 20))
        found = b""
        try:
            while data := client.recv(65536):
                found += data
                client.settimeout(0.5)
        except (TimeoutError, ConnectionResetError):
            pass
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def post(path: str, body: bytes = BODY, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


@pytest.fixture
def behind(truth: Start, proxy: Start) -> tuple[Told, Told, Told]:
    p, d = truth("--role", "prefill", "--ttft", 1), truth("--role", "decode", "--ttft", 1, "--gap", 1)
    return p, d, proxy("--prefill", p.url, "--decode", d.url)


CASES: list[tuple[str, bytes, int]] = [
    ("no Host", b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("odd Host", b"GET /v1/models HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("HTTP/1.0 without Host", b"GET /v1/models HTTP/1.0\r\n\r\n", 200),
    ("HTTP/2.0", b"GET /v1/models HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n", 505),
    ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    ("two lengths", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    ("length and chunks", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
     b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("odd length", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}", 400),
    ("negative length", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{}", 400),
    ("list of lengths", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n{}", 400),
    ("other coding", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("space before colon", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n", 400),
    ("folded header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n", 400),
    ("NUL in a header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n\r\n", 400),
    ("CR in a header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: b\rc\r\n\r\n", 400),
    ("long header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40000 + b"\r\n\r\n", 431),
    ("many headers", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 200 + b"\r\n", 431),
    ("long URL", b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    ("odd expectation", post("/tokenize", b"{}", "Expect: tea"), 417),
    ("too large a body", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
    ("upgrade", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    ("CONNECT", b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("DELETE", b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("GET of a generation", b"GET /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("POST of models", post("/v1/models", b"{}"), 405),
    ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("absolute-form", post("http://other/v1/completions"), 400),
    ("fragment", post("/v1/completions#x"), 400),
    ("out of the root", post("/../v1/completions"), 400),
    ("half an escape", post("/v1/c%6mpletions"), 400),
    ("NUL in the path", post("/v1/completions%00"), 400),
    ("line in the path", post("/v1/completions%0a"), 400),
    ("not UTF-8 in the path", post("/v1/%ff"), 400),
    ("other case", post("/V1/completions"), 404),
    ("responses", post("/v1/responses"), 404),
    ("invocations", post("/invocations"), 404),
    ("generate", post("/inference/v1/generate"), 404),
    ("batch", post("/v1/chat/completions/batch"), 404),
    ("administration", post("/reset_prefix_cache"), 404),
    ("slash behind", post("/v1/completions/"), 404),
    ("HEAD of nothing", b"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
]  # fmt: skip


def test_what_is_refused(behind: tuple[Told, Told, Told]) -> None:
    p, d, at = behind
    found = {name: (statuses(said(at.url, raw)) or [0])[0] for name, raw, _ in CASES}
    assert found == {name: status for name, _, status in CASES}
    assert p.log()["requests"] == 0
    assert d.log()["requests"] == 0


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/c%6Fmpletions", "//v1///completions", "/v1/./completions", "/x/../v1/completions",
             "/v1%2Fcompletions", "/v1/completions?x=y"],
)  # fmt: skip
def test_every_way_to_write_a_path_is_the_same_path(behind: tuple[Told, Told, Told], path: str) -> None:
    p, d, at = behind
    assert statuses(said(at.url, post(path))) == [200]
    assert (p.log()["requests"], d.log()["requests"]) == (1, 1)
    evil = BODY[:-1] + b"," + PARAMS.encode() + b"}"
    assert statuses(said(at.url, post(path, evil))) == [400]
    assert d.log()["requests"] == 1


@pytest.mark.parametrize(
    "body",
    [
        f'{{"prompt":"a",{PARAMS}}}',
        '{"prompt":"a","kv\\u005ftransfer_params":{}}',
        '{"kv_transfer_params":null,"prompt":"a"}',
        '{"prompt":"a","ec_transfer_params":{}}',
        '{"prompt":"a","vllm_xargs":{"kv_transfer_params":0}}',
        '{"prompt":["a","b"]}', '{"prompt":[[1,2],[3]]}', '{"prompt":"a","n":2}', '{"prompt":"a","n":"2"}', '{"prompt":"a","n":true}',
        '{"prompt":"a","use_beam_search":true}', '{"prompt_embeds":["a","b"]}',
        '{"prompt":"a","max_tokens":-5}', '{"prompt":"a","max_tokens":0}', '{"prompt":"a","max_tokens":"abc"}',
        '{"prompt":"a","max_tokens":2.5}', '{"prompt":"a","max_tokens":1e400}', '{"prompt":"a","max_tokens":2,"min_tokens":3}',
        '{"prompt":"a","temperature":-1}', '{"prompt":"a","temperature":NaN}', '{"prompt":"a","top_p":2}', '{"prompt":"a","top_p":"x"}',
        '{"prompt":"a","logprobs":-3}', '{"prompt":"a","stop":[1]}', '{"prompt":"a","stop":""}', '{"prompt":"a","seed":1e30}',
        '{"prompt":"a","stream":"yes"}', '{"prompt":"a","stream":true,"stream_options":[]}', '{"prompt":"a","response_format":{"type":"tea"}}',
        '{"prompt":"a","logit_bias":{"x":1}}', '{"prompt":"a","stop_token_ids":"x"}', '{"prompt":"a","prompt_logprobs":1,"stream":true}',
        '{"prompt":"a"', '{"prompt":"a"} x', '[]', '5', '', '{"a":' + "[" * 5000 + "]" * 5000 + "}", '{"a":"\ud800"}',
    ],
)  # fmt: skip
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
    from taskrunner.inference.proxy import handover

    asked = {
        "model": "m", "messages": [{"role": "user", "content": "hé"}], "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required", "response_format": {"type": "json_object"}, "stream": True, "stop": "x", "n": 1,
        "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 9, "min_tokens": 3,
        "chat_template_kwargs": {"thinking": False}, "temperature": 0.5, "cache_salt": "s",
    }  # fmt: skip
    fields = handover.request_of(json.dumps(asked).encode())
    assert handover.checked("/v1/chat/completions", fields)
    assert json.loads(handover.for_prefill(fields)) == {
        "model": "m", "messages": asked["messages"], "tools": asked["tools"], "tool_choice": None, "stream": False,
        "max_tokens": 1, "max_completion_tokens": 1, "chat_template_kwargs": {"thinking": False}, "cache_salt": "s",
        "kv_transfer_params": handover.ASKED,
    }  # fmt: skip
    assert json.loads(handover.for_decode(fields, {"a": 1})) == {**asked, "kv_transfer_params": {"a": 1}}
    none = handover.request_of(b'{"messages":[],"tools":[],"tool_choice":"none"}')
    assert json.loads(handover.for_prefill(none))["tool_choice"] == "none"


def test_pipelined_requests_are_answered_in_their_order(behind: tuple[Told, Told, Told]) -> None:
    _, d, at = behind
    texts = [b'{"model":"truth","prompt":"a","max_tokens":%d}' % number for number in (3, 1, 2)]
    raw = (
        b"".join(post("/v1/completions", text) for text in texts)
        + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    for writes in (
        [raw],
        [raw[:150], raw[150:151], raw[151:]],
        [raw[i : i + 7] for i in range(0, len(raw), 7)],
    ):
        answer = said(at.url, *writes)
        assert statuses(answer)[:3] == [200] * 3
        assert [part.count(b" w") for part in answer.split(b"HTTP/1.1 ")[1:4]] == [3, 1, 2]
    assert d.log()["requests"] == 9


def test_a_request_behind_a_bad_one_is_never_looked_at(behind: tuple[Told, Told, Told]) -> None:
    """Where two disagree about where a request ends, the rest of one is a request for the other."""
    _, d, at = behind
    answer = said(at.url, b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
                  b"0\r\n\r\n" + post("/v1/completions"))  # fmt: skip
    assert statuses(answer) == [400]
    assert d.log()["requests"] == 0


def test_framing_is_that_of_each_connection(behind: tuple[Told, Told, Told]) -> None:
    _, _, at = behind
    streamed = BODY[:-1] + b',"stream":true}'
    answer = said(at.url, post("/v1/completions", streamed, version="1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: ")
    assert body.rstrip().endswith(b"data: [DONE]")
    answer = said(at.url, post("/v1/completions", BODY, "Connection: keep-alive", version="1.0"))
    assert b"connection: keep-alive" in answer.lower()
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"%x;a=b\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(BODY), BODY)
    assert statuses(said(at.url, chunked)) == [200]


def test_headers_of_a_connection_go_no_further(behind: tuple[Told, Told, Told]) -> None:
    _, _, at = behind
    raw = post(
        "/v1/completions", BODY, "Connection: close, X-Mine", "X-Mine: 1", "Keep-Alive: 5", "TE: trailers"
    )
    answer = said(at.url, raw)
    assert statuses(answer) == [200]
    assert b"keep-alive:" not in answer.lower()


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_head_is_get_without_a_body(behind: tuple[Told, Told, Told], path: str) -> None:
    _, _, at = behind
    answer = said(at.url, f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 2)
    assert statuses(answer) == [200, 200]
    assert answer.count(b"\r\n\r\n") == 2
    assert b"content-length: 0" not in answer.lower()


def test_a_body_that_is_waited_for_is_asked_for(behind: tuple[Told, Told, Told]) -> None:
    _, _, at = behind
    host, _, port = at.url.removeprefix("http://").rpartition(":")
    raw = post("/v1/completions", BODY, "Expect: 100-continue")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(raw[: -len(BODY)])
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    assert statuses(said(at.url, post("/nothing", BODY, "Expect: 100-continue")[: -len(BODY)])) == [404]


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


def test_time_outs(truth: Start, proxy: Start) -> None:
    d = truth()
    limits = ("--header-timeout", 0.5, "--body-timeout", 0.5, "--keepalive-timeout", 1)
    at = proxy("--decode", d.url, *limits)
    began = time.monotonic()
    assert statuses(said(at.url, b"GET / HT")) == [408]
    assert statuses(said(at.url, post("/v1/completions")[:-3])) == [408]
    assert said(at.url, b"") == b""
    assert statuses(said(at.url, post("/v1/completions"))) == [200]
    assert time.monotonic() - began < 8


def test_a_crowd_that_says_nothing_keeps_nobody_out(truth: Start, proxy: Start) -> None:
    """A thousand idle and half-open clients, and some that send large bodies which do not end."""
    p, d = truth("--role", "prefill", "--ttft", 1), truth("--role", "decode", "--ttft", 1, "--gap", 1)
    at = proxy("--prefill", p.url, "--decode", d.url)
    host, _, port = at.url.removeprefix("http://").rpartition(":")
    begins = [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: ", post("/v1/completions")[:-5],
              b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"]  # fmt: skip
    crowd = []
    for number in range(1000):
        client = socket.create_connection((host, int(port)))
        client.sendall(begins[number % len(begins)])
        crowd.append(client)
    for client in crowd[4::50]:
        client.setblocking(False)
        for _ in range(200):
            try:
                client.send(b" " * 100_000)
            except (BlockingIOError, OSError):
                time.sleep(0.001)
    began = time.monotonic()
    assert statuses(said(at.url, post("/v1/completions"))) == [200]
    assert time.monotonic() - began < 2
    status = Path(f"/proc/{at.process.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 200_000
    for client in crowd:
        client.close()


def test_trailers_do_not_go_on_for_ever(truth: Start, proxy: Start) -> None:
    at = proxy("--decode", truth().url)
    raw = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    assert statuses(said(at.url, raw, *[b"a" * 10_000] * 60)) == [431]
    assert statuses(said(at.url, post("/health").replace(b"POST", b"GET"))) == [400]


def test_connections_to_servers_are_used_again(truth: Start, proxy: Start) -> None:
    p, d = truth("--role", "prefill", "--ttft", 1), truth("--role", "decode", "--ttft", 1, "--gap", 1)
    at = proxy("--prefill", p.url, "--decode", d.url)
    seen = set()
    for _ in range(6):
        assert statuses(said(at.url, post("/v1/completions"))) == [200]
        seen |= {line.split()[2] for line in Path(f"/proc/{at.process.pid}/net/tcp").read_text().splitlines()[1:]
                 if int(line.split()[2].split(":")[1], 16) in (int(p.url.rpartition(":")[2]), int(d.url.rpartition(":")[2]))
                 and line.split()[3] == "01"}  # fmt: skip
    opened = [line.split()[1] for line in Path(f"/proc/{at.process.pid}/net/tcp").read_text().splitlines()[1:]
              if line.split()[2] in seen and line.split()[3] in ("01", "06")]  # fmt: skip
    assert len(opened) == 2


def test_blocks_that_decode_has_refused_are_released(truth: Start, proxy: Start) -> None:
    p = truth("--role", "prefill", "--ttft", 1)
    d = truth("--role", "decode", "--fault", "http_500")
    at = proxy("--prefill", p.url, "--decode", d.url)
    assert statuses(said(at.url, post("/v1/completions"))) == [500]
    # One for the client, and one that lets decode fetch what prefill keeps.
    wait_for(lambda: d.log()["requests"] >= 2)


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return self.closed


class Recorder(Proxy):
    """Answers with what was asked."""

    def __init__(self) -> None:
        super().__init__(
            Settings([], ["http://x"], max_header_size=2000, max_body_size=2000, max_buffered=4000)
        )
        self.seen: list[tuple[str, str, bytes]] = []

    async def answer(self, front: Front, request: Request) -> None:
        self.seen.append((request.method, request.path, request.body))
        front.reply(200, "text/plain", b"ok")


def spoken(writes: list[bytes]) -> tuple[list[tuple[str, str, bytes]], list[int], Recorder]:
    async def talk() -> tuple[list[tuple[str, str, bytes]], list[int], Recorder]:
        proxy, wire = Recorder(), Wire()
        front = Front(proxy)
        front.connection_made(wire)  # type: ignore[arg-type]
        for data in writes:
            front.data_received(data)
            for _ in range(3):
                await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        front.connection_lost(None)
        await asyncio.sleep(0)
        return proxy.seen, statuses(wire.written), proxy

    return asyncio.run(talk())


def test_who_reads_nothing_is_ended() -> None:
    """While it is answered, between two requests, and when the connection is to be closed."""

    async def talk(closing: bool) -> bool:
        proxy, wire = Recorder(), Wire()
        front = Front(proxy)
        front.connection_made(wire)  # type: ignore[arg-type]
        front.pause_writing()
        front.data_received(
            b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"Connection: close\r\n" * closing + b"\r\n"
        )
        for _ in range(20):
            await asyncio.sleep(0)
        assert 0 < front.deadline <= asyncio.get_running_loop().time() + 80
        wire.closed = False
        front.overdue(asyncio.get_running_loop().time() + 100)
        front.connection_lost(None)
        return wire.closed

    assert asyncio.run(talk(False))
    assert asyncio.run(talk(True))


PIECES = st.sampled_from([
    post("/v1/completions"), post("/tokenize", b"{}"), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n", b" ", b"\0", b"x",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffff\r\n",
    b"GET ", b"/health", b" HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\xff" * 50, b"a" * 1500,
    b"Expect: 100-continue\r\n", b"HEAD /metrics HTTP/1.0\r\n\r\n",
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=12),
    st.lists(st.integers(0, 5000), max_size=8),
)
def test_whatever_is_sent_is_understood_the_same_however_it_is_cut(
    parts: list[bytes], cuts: list[int]
) -> None:
    raw = b"".join(parts)
    points = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    whole, once, proxy = spoken([raw])
    cut, twice, _ = spoken([raw[a:b] for a, b in zip(points, points[1:], strict=False)])
    assert whole == cut
    assert once[: len(whole)] == twice[: len(whole)]
    assert proxy.held == 0
    assert not proxy.fronts


@settings(max_examples=300)
@given(st.one_of(st.text(), st.text("/.%2eF\\?#a", max_size=20).map(lambda text: "/" + text)))
def test_a_path_has_one_meaning(target: str) -> None:
    try:
        path, _ = normal(target)
    except Refused:
        return
    assert path.startswith("/")
    assert not {"", ".", ".."}.intersection(path[1:].rstrip("/").split("/")) - (
        {""} if path == "/" else set()
    )

"""The proxy and raw HTTP: framing, paths, limits."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskrunner.engine.run.probes import listening
from tests.helpers import CACHE, wait_for
from tests.inference.conftest import Told
from tests.inference.raw import BODY, CASES, PARAMS, post, said, statuses
from tests.sshd import free_port

Start = Callable[..., Told]
NGINX = """
daemon off; pid {0}/pid; error_log {0}/errors; events {{}}
http {{
  access_log off; large_client_header_buffers 4 32k; client_max_body_size 32m;
  client_body_temp_path {0}/1; proxy_temp_path {0}/2; fastcgi_temp_path {0}/3; uwsgi_temp_path {0}/4; scgi_temp_path {0}/5;
  server {{ listen 127.0.0.1:{1}; location / {{ return 200 ok; }} }}
}}
"""
TAKEN_BY_NGINX = {
    "HTTP/0.9": 0,
    "many headers": 200,
    "odd expectation": 200,
    "absolute-form": 200,
    "fragment": 200,
    "line in the path": 200,
    "not UTF-8 in the path": 200,
}
"""What the proxy refuses and nginx takes; 0 is an answer without a head."""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[str]:
    """An nginx that answers every request that it takes with 200."""
    port = free_port()
    (tmp_path / "nginx.conf").write_text(NGINX.format(tmp_path, port))
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:{CACHE}/nginx/usr/sbin")
    assert program, "scripts/test gets nginx"
    process = subprocess.Popen([program, "-e", "stderr", "-c", tmp_path / "nginx.conf"])
    wait_for(lambda: listening("127.0.0.1", port))
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


def answered(url: str) -> dict[str, int]:
    """The status of each of CASES; 0 for none."""
    with ThreadPoolExecutor(16) as several:
        answers = several.map(lambda case: said(url, case[1]), CASES)
    return {name: (statuses(answer) or [0])[0] for (name, _, _), answer in zip(CASES, answers, strict=True)}


def test_what_is_refused(behind: tuple[Told, Told, Told]) -> None:
    p, d, at = behind
    assert answered(at.url) == {name: status for name, _, status in CASES}
    assert p.log()["requests"] == 0
    assert d.log()["requests"] == 0


def test_nginx_refuses_the_same(nginx: str) -> None:
    """With the same status, but for a header that is too long; which paths and methods there are, it cannot know."""
    framing = {name: status for name, _, status in CASES if status not in (404, 405)}
    found = answered(nginx)
    assert {name: found[name] for name in framing} == framing | TAKEN_BY_NGINX | {"long header": 400}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions",
        "/v1/c%6Fmpletions",
        "//v1///completions",
        "/v1/./completions",
        "/x/../v1/completions",
        "/v1%2Fcompletions",
        "/v1/completions?x=y",
    ],
)
def test_every_way_to_write_a_path_is_the_same_path(behind: tuple[Told, Told, Told], path: str) -> None:
    p, d, at = behind
    assert statuses(said(at.url, post(path))) == [200]
    assert (p.log()["requests"], d.log()["requests"]) == (1, 1)
    evil = BODY[:-1] + b"," + PARAMS.encode() + b"}"
    assert statuses(said(at.url, post(path, evil))) == [400]
    assert d.log()["requests"] == 1


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
    answer = said(
        at.url,
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n" + post("/v1/completions"),
    )
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


@pytest.mark.alone
def test_a_crowd_that_says_nothing_keeps_nobody_out(truth: Start, proxy: Start) -> None:
    """A thousand idle and half-open clients, and some that send large bodies which do not end."""
    p, d = truth("--role", "prefill", "--ttft", 1), truth("--role", "decode", "--ttft", 1, "--gap", 1)
    at = proxy("--prefill", p.url, "--decode", d.url)
    host, _, port = at.url.removeprefix("http://").rpartition(":")
    begins = [
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: ",
        post("/v1/completions")[:-5],
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n",
    ]
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
    for pid in at.processes():
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 200_000
    for client in crowd:
        client.close()


def test_trailers_do_not_go_on_for_ever(truth: Start, proxy: Start) -> None:
    at = proxy("--decode", truth().url)
    raw = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    assert statuses(said(at.url, raw, *[b"a" * 10_000] * 60)) == [431]
    assert statuses(said(at.url, post("/health").replace(b"POST", b"GET"))) == [400]

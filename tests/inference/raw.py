"""Bytes to the proxy as they are, and requests that no client should send."""

from __future__ import annotations

import contextlib
import socket
import time

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


CASES: list[tuple[str, bytes, int]] = [
    ("no Host", b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("odd Host", b"GET /v1/models HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("HTTP/1.0 without Host", b"GET /v1/models HTTP/1.0\r\n\r\n", 200),
    ("HTTP/2.0", b"GET /v1/models HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n", 505),
    ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    (
        "two lengths",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        400,
    ),
    (
        "length and chunks",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("odd length", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}", 400),
    ("negative length", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{}", 400),
    ("list of lengths", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n{}", 400),
    (
        "other coding",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    ("space before colon", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n", 400),
    ("folded header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n", 400),
    ("NUL in a header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n\r\n", 400),
    ("CR in a header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: b\rc\r\n\r\n", 400),
    ("long header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40000 + b"\r\n\r\n", 431),
    ("many headers", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 200 + b"\r\n", 431),
    ("long URL", b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    ("odd expectation", post("/tokenize", b"{}", "Expect: tea"), 417),
    ("too large a body", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (
        "upgrade",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        200,
    ),
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
]

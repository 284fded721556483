"""The proxy, in front of servers that know what happened."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait_for
from tests.inference.conftest import Told, get

Start = Callable[..., Told]
BODY = {
    "model": "truth",
    "prompt": "a b c",
    "max_tokens": 4,
    "min_tokens": 4,
    "stream_options": {"include_usage": True},
}


def pair(
    truth: Start,
    proxy: Start,
    *options: object,
    prefill: tuple[object, ...] = (),
    decode: tuple[object, ...] = (),
) -> tuple[Told, Told, Told]:
    p = truth("--role", "prefill", "--ttft", 5, *prefill)
    d = truth("--role", "decode", "--ttft", 20, "--gap", 5, *decode)
    return p, d, proxy("--prefill", p.url, "--decode", d.url, *options)


def refused(url: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, body)
    with caught.value as error:
        return error.code, json.loads(error.read()), dict(error.headers)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_first_prefill_then_decode(truth: Start, proxy: Start, path: str, stream: bool) -> None:
    p, d, at = pair(truth, proxy)
    body = {**BODY, "stream": stream, "messages": [{"role": "user", "content": "a b"}]}
    text = get(at.url + path, json.dumps(body).encode(), X_Request_Id="mine")
    assert ("[DONE]" in text) is stream
    assert text.count(" w") == 4
    (asked,), (given,) = p.log()["log"], d.log()["log"]
    assert asked["id"] == given["id"] == "mine"
    assert asked["params"]["do_remote_decode"] is True
    assert given["params"]["remote_block_ids"] == [[1, 2, 3]]
    assert given["params"]["tp_size"] == 1  # as it came, whatever is in it
    assert given["first"] > asked["whole"]


def test_times_are_told(truth: Start, proxy: Start, tmp_path: Path) -> None:
    _, _, at = pair(truth, proxy, "--log", tmp_path / "log")
    request = json.dumps({**BODY, "stream": True}).encode()
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(f"{at.url}/v1/completions", request)) as response:
        response.read()
        assert 5 <= float(response.headers["X-Proxy-Prefill-Time"]) < 200
        assert float(response.headers["X-Proxy-KV-Extract-Time"]) >= 0
    metrics = get(f"{at.url}/metrics")
    for name in ("prefill", "kv_extract", "decode_first_byte"):
        assert f"proxy_{name}_seconds_count 1.0" in metrics
    (line,) = (tmp_path / "log").read_text().splitlines()
    ms = json.loads(line)["ms"]
    order = [
        "received",
        "prefill_sent",
        "prefill_first",
        "prefill_done",
        "extracted",
        "decode_sent",
        "decode_headers",
        "decode_first",
        "last",
    ]
    assert [ms[name] for name in order] == sorted(ms[name] for name in order)


@pytest.mark.parametrize("fault", ["no_params", "half_params"])
def test_half_a_handover_never_reaches_decode(truth: Start, proxy: Start, fault: str) -> None:
    _, d, at = pair(truth, proxy, prefill=("--fault", fault))
    status, said, _ = refused(f"{at.url}/v1/completions", json.dumps(BODY).encode())
    assert (status, said["error"]["stage"]) == (502, "prefill")
    assert d.log()["requests"] == 0


def test_errors_of_servers_are_kept(truth: Start, proxy: Start) -> None:
    _, _, at = pair(truth, proxy, prefill=("--fault", "http_500"))
    status, said, headers = refused(f"{at.url}/v1/completions", json.dumps(BODY).encode())
    assert (status, said["error"]["message"], headers["X-Proxy-Stage"]) == (500, "told to fail", "prefill")
    _, _, at = pair(truth, proxy, decode=("--fault", "http_500"))
    status, said, _ = refused(f"{at.url}/v1/completions", json.dumps(BODY).encode())
    assert (status, said["error"]["message"]) == (500, "told to fail")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"kv_transfer_params": {}}', b""])
def test_what_is_no_request(truth: Start, proxy: Start, body: bytes) -> None:
    p, _, at = pair(truth, proxy)
    assert refused(f"{at.url}/v1/completions", body)[0] == 400
    assert p.log()["requests"] == 0


def test_a_stream_that_breaks_is_no_success(truth: Start, proxy: Start) -> None:
    _, _, at = pair(truth, proxy, decode=("--fault", "break"))
    with pytest.raises(Exception, match=r"Connection|IncompleteRead|closed|reset"):
        get(f"{at.url}/v1/completions", json.dumps({**BODY, "stream": True}).encode())


def test_who_leaves_is_left(truth: Start, proxy: Start) -> None:
    """A client that goes away ends its request on the decode server; one that goes in prefill, on that."""
    p, d, at = pair(truth, proxy, decode=("--gap", 1000))
    host, port = at.url.removeprefix("http://").split(":")
    body = json.dumps({**BODY, "stream": True}).encode()
    raw = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection((host, int(port))) as client:
        client.sendall(raw)
        client.recv(4096)
    wait_for(lambda: d.log()["aborted"] == 1)
    slow = truth("--role", "prefill", "--ttft", 3000)
    other = proxy("--prefill", slow.url, "--decode", d.url)
    host, port = other.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(raw)
        wait_for(lambda: slow.log()["requests"] == 1)
    wait_for(lambda: slow.log()["aborted"] == 1)
    assert p.log()["aborted"] == 0


def test_several_servers_take_turns_and_the_dead_are_told(truth: Start, proxy: Start) -> None:
    prefill = [truth("--role", "prefill", "--ttft", 1) for _ in range(2)]
    decode = [truth("--role", "decode", "--ttft", 1, "--gap", 1) for _ in range(3)]
    at = proxy(
        *(word for s in prefill for word in ("--prefill", s.url)),
        *(w for s in decode for w in ("--decode", s.url)),
    )
    for _ in range(6):
        get(f"{at.url}/v1/completions", json.dumps(BODY).encode())
    assert [server.log()["requests"] for server in (*prefill, *decode)] == [3, 3, 2, 2, 2]
    assert json.loads(get(f"{at.url}/health"))["status"] == "ok"
    decode[0].process.kill()
    decode[0].process.wait()
    status, said, _ = refused(f"{at.url}/health", None)  # type: ignore[arg-type]
    assert status == 503
    assert sum(word == "ok" for word in said["servers"].values()) == 4
    for _ in range(3):
        try:
            get(f"{at.url}/v1/completions", json.dumps(BODY).encode())
        except urllib.error.HTTPError as error:
            with error:
                assert error.code == 502
                assert json.loads(error.read())["error"]["stage"] == "decode"


def test_a_server_that_was_restarted_meanwhile(truth: Start, proxy: Start) -> None:
    """A connection that was kept open is dead: the request goes over a new one, after another prefill."""
    p, d, at = pair(truth, proxy)
    get(f"{at.url}/v1/completions", json.dumps(BODY).encode())
    port = d.url.rpartition(":")[2]
    d.process.kill()
    d.process.wait()
    truth("--role", "decode", "--port", port, "--gap", 1)
    assert " w" in get(f"{at.url}/v1/completions", json.dumps(BODY).encode())
    assert p.log()["requests"] in (2, 3)


def test_sigterm_lets_requests_end(truth: Start, proxy: Start) -> None:
    _, _, at = pair(truth, proxy, decode=("--gap", 100))
    found: list[str] = []
    body = json.dumps({**BODY, "max_tokens": 10, "stream": True}).encode()
    thread = threading.Thread(target=lambda: found.append(get(f"{at.url}/v1/completions", body)))
    thread.start()
    time.sleep(0.4)
    at.process.send_signal(signal.SIGTERM)
    thread.join()
    assert "[DONE]" in found[0]
    assert at.process.wait(5) == 0


def test_a_server_that_does_not_answer(truth: Start, proxy: Start) -> None:
    _, _, at = pair(truth, proxy, "--timeout", 0.5, prefill=("--ttft", 5000))
    assert refused(f"{at.url}/v1/completions", json.dumps(BODY).encode())[0] == 504


def test_other_paths_go_to_decode(truth: Start, proxy: Start) -> None:
    _, _, at = pair(truth, proxy)
    assert json.loads(get(f"{at.url}/v1/models"))["data"][0]["id"] == "truth"
    assert refused(f"{at.url}/nothing", b"{}")[0] == 404


def test_prefill_computes_nothing_that_no_decode_server_would_fetch(truth: Start, proxy: Start) -> None:
    """A KV cache stays with it until its lease ends: it would be full after a few hundred."""
    p, d, at = pair(truth, proxy)
    body = json.dumps(BODY).encode()
    get(f"{at.url}/v1/completions", body)
    d.process.kill()
    d.process.wait()
    for _ in range(3):
        status, _, headers = refused(f"{at.url}/v1/completions", body)
        assert (status, headers["X-Proxy-Stage"]) == (502, "decode")
    assert p.log()["requests"] == 1


def test_a_decode_server_that_is_away_is_passed_over(truth: Start, proxy: Start) -> None:
    p = truth("--role", "prefill", "--ttft", 5)
    first, second = (truth("--role", "decode", "--ttft", 5, "--gap", 1) for _ in range(2))
    at = proxy("--prefill", p.url, "--decode", first.url, "--decode", second.url)
    first.process.kill()
    first.process.wait()
    for _ in range(4):
        assert get(f"{at.url}/v1/completions", json.dumps(BODY).encode())
    assert second.log()["requests"] == 4

"""A server that knows the truth: every token is sent at a time that was fixed beforehand, and carries it.

It answers as vLLM does (completions, chat, tokenize, health, metrics), as a unified, prefill or decode server, and can
be told to fail. What it did is logged by request id; times are of time.perf_counter, which one machine's processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections import deque
from typing import Any

import httptools
import uvloop

IDS = range(100, 1100)


class Truth:
    """What is true of each answer: `ttft` and `gap` in seconds, `per_chunk` tokens at a time; and its faults.

    `fault` is one of: "", http_500, error_event, no_done, break, split, comment, slow, no_params, half_params; `faults` is how many answers have it (-1: all).
    `slow_by` is in seconds.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.ttft, self.gap, self.per_chunk = args.ttft / 1e3, args.gap / 1e3, args.per_chunk
        self.fault, self.faults, self.slow_by = args.fault, args.faults, args.slow_by / 1e3
        self.role = args.role
        self.log: deque[dict[str, Any]] = deque()
        self.requests = self.aborted = 0
        self.tokens = self.transfers = 0


class Connection(asyncio.Protocol):
    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.timer: asyncio.Handle | None = None
        self.answering = False
        self.first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self.socket.setblocking(False)

    def connection_lost(self, error: Exception | None) -> None:
        self.truth.aborted += self.answering
        self.socket.close()
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body = b"", bytearray()
        self.headers: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        now, first, self.first = time.perf_counter(), self.first, 0.0
        path = self.url.decode()
        if path == "/health":
            return self.whole(200, b"")
        if path == "/metrics":
            counted = (
                f'vllm:prompt_tokens_by_source_total{{source="external_kv_transfer"}} {self.truth.tokens}\n'
            )
            if self.truth.role == "decode":
                # Few: it is the requests that cross the loopback here.
                transfers = self.truth.transfers
                counted += f"vllm:nixl_bytes_transferred_sum {64 * transfers}\n"
                counted += f"vllm:nixl_xfer_time_seconds_count {transfers}\n"
            return self.whole(200, counted.encode(), "text/plain")
        if path == "/v1/models":
            return self.json(200, {"data": [{"id": "truth"}]})
        if path == "/log":
            said, self.truth.log = list(self.truth.log), deque()
            return self.json(
                200, {"log": said, "aborted": self.truth.aborted, "requests": self.truth.requests}
            )
        if path in ("/v1/completions", "/v1/chat/completions"):
            self.truth.requests += 1
            self.answering = True
            # Read when there is time: what comes at the same moment would wait for it.
            return self.at(now + min(0.01, self.truth.ttft / 4), self.complete, path, first, now)
        request = json.loads(self.body) if self.body else {}
        if path == "/tokenize":
            return self.json(
                200, {"tokens": [IDS[hash(word) % len(IDS)] for word in request["prompt"].split()]}
            )
        if path == "/detokenize":
            return self.json(200, {"prompt": " ".join(f"w{token}" for token in request["tokens"])})
        return self.json(404, {"error": {"message": f"no {path}"}})

    def complete(self, path: str, first: float, now: float) -> None:
        truth, request = self.truth, json.loads(self.body)
        fault = truth.fault if truth.faults else ""
        truth.faults -= bool(fault and truth.faults > 0)
        prompt = request.get("prompt") or json.dumps(request.get("messages", ""))
        length = len(prompt) if isinstance(prompt, list) else len(prompt.split())
        tokens = int(request.get("max_completion_tokens") or request.get("max_tokens") or 16)
        entry: dict[str, Any] = {
            "id": self.headers.get(b"x-request-id", b"").decode(),
            "first": first,
            "whole": now,
            "sent": [],
            "params": request.get("kv_transfer_params"),
        }
        truth.log.append(entry)
        if fault == "http_500":
            return self.json(500, {"error": {"message": "told to fail", "code": 500}})
        if truth.role == "decode":
            if not (entry["params"] or {}).get("remote_block_ids"):
                return self.json(500, {"error": {"message": "EngineCore encountered a fatal error"}})
            truth.tokens += length
            truth.transfers += 1
        usage = {"prompt_tokens": length, "completion_tokens": tokens, "total_tokens": length + tokens}
        if not request.get("stream"):
            answer: dict[str, Any] = {
                "id": "cmpl",
                "choices": [{"index": 0, "text": " w" * tokens, "finish_reason": "length"}],
                "usage": usage,
            }
            asked = (request.get("kv_transfer_params") or {}).get("do_remote_decode")
            if asked and fault != "no_params":
                answer["kv_transfer_params"] = {
                    "do_remote_prefill": True,
                    "do_remote_decode": False,
                    "remote_engine_id": "engine-1",
                    "remote_block_ids": [[1, 2, 3]] if fault != "half_params" else None,
                    "remote_host": "127.0.0.1",
                    "remote_port": 5600,
                    "remote_request_id": entry["id"],
                    "tp_size": 1,
                }

            def answered() -> None:
                entry["sent"].append(time.perf_counter())
                self.json(200, answer)

            return self.at(now + truth.ttft, answered)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        chat = "chat" in path
        faulty = fault in ("error_event", "break", "no_done")
        whole = tokens // 2 if faulty else tokens
        count = -(-whole // truth.per_chunk)

        def end() -> None:
            self.answering = False
            if fault == "break":
                self.transport.abort()
                return None
            if fault == "error_event":
                self.event(b'{"error": {"message": "handshake_setup_failed", "code": 500}}')
            elif fault != "no_done" and (request.get("stream_options") or {}).get("include_usage"):
                self.event(json.dumps({"id": "cmpl", "choices": [], "usage": usage}).encode())
            done = b"" if fault == "no_done" else b"e\r\ndata: [DONE]\n\n\r\n"
            return self.send(done + b"0\r\n\r\n")

        def step(index: int) -> None:
            # One after the other: timers of one time have no order, and nothing is made ahead, as that takes time.
            last = index == count - 1
            if not index:
                self.send(head)
            some = whole - index * truth.per_chunk if last else truth.per_chunk
            self.token(entry, some, last and not faulty, chat, fault)
            if last:
                return end()
            return self.at(now + truth.ttft + (index + 1) * truth.gap, step, index + 1)

        return self.at(now + truth.ttft + (truth.slow_by if fault == "slow" else 0.0), step, 0)

    def token(self, entry: dict[str, Any], some: int, last: bool, chat: bool, fault: str) -> None:
        now = time.perf_counter()
        entry["sent"].append(now)
        text = " w" * some
        said = f'"delta": {{"content": "{text}"}}' if chat else f'"text": "{text}"'
        reason = '"length"' if last else "null"
        kind = "chat.completion.chunk" if chat else "text_completion"
        data = (
            b'{"id": "cmpl", "object": "%b", "choices": [{"index": 0, %b, "finish_reason": %b}], "truth": %.9f}'
            % (kind.encode(), said.encode(), reason.encode(), now)
        )
        if fault == "comment":
            self.send(b"7\r\n: ping\n\r\n")
        if fault == "split":
            whole = b"data: " + data + b"\n\n"
            for part in (whole[:9], whole[9:-1], whole[-1:]):
                self.send(b"%x\r\n" % len(part) + part + b"\r\n")
            return
        self.event(data)

    def event(self, data: bytes) -> None:
        self.send(b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data))

    def send(self, data: bytes) -> None:
        """Now: the loop would do it when all else that is ready is done."""
        sent = 0
        if not self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError):
                sent = self.socket.send(data)
        if sent < len(data):
            self.transport.write(data[sent:])

    def at(self, when: float, what: Any, *about: Any) -> None:
        self.timer = self.loop.call_later(max(0.0, when - time.perf_counter()), what, *about)

    def json(self, status: int, answer: dict[str, Any]) -> None:
        self.whole(status, json.dumps(answer).encode(), "application/json")

    def whole(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.answering = False
        self.transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
            % (status, kind.encode(), len(body))
            + body
        )


async def serve(args: argparse.Namespace) -> None:
    truth = Truth(args)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(truth), "127.0.0.1", args.port, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started it has gone


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind, default in (
        ("--ttft", float, 50.0),
        ("--gap", float, 10.0),
        ("--per-chunk", int, 1),
        ("--port", int, 0),
        ("--fault", str, ""),
        ("--faults", int, -1),
        ("--role", str, "unified"),
        ("--slow-by", float, 0.0),
    ):
        parser.add_argument(name, type=kind, default=default)
    loop = uvloop.new_event_loop()
    loop.run_until_complete(serve(parser.parse_args()))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

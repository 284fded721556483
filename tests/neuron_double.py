"""Programs of a Neuron instance, by the name that this is called by: they have the command lines and the quirks of
the real ones, and compute nothing.

A prefill server listens on the port of NeuronConnector (DOUBLE_KV_PORT), a decode server connects to it, and neither is
ready before; the router streams prefill's first token and decode's others, as x-ndjson, and an error with status 200.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 30.0


def server(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kv-transfer-config", default="")
    parser.add_argument("--port", type=int)
    known, _ = parser.parse_known_args(words)
    Path(f"server-{known.port}.json").write_text(json.dumps({"argv": words, "env": dict(os.environ)}))
    if known.kv_transfer_config:
        meet(json.loads(known.kv_transfer_config))
    print(f"INFO:     Uvicorn running on http://0.0.0.0:{known.port}", file=sys.stderr, flush=True)
    truth = [
        sys.executable,
        "-m",
        "tests.scripted_server",
        "--port",
        str(known.port),
        "--ttft",
        "5",
        "--gap",
        "2",
    ]
    with subprocess.Popen(truth, stdin=subprocess.PIPE) as process:
        process.wait()


def meet(config: dict[str, object]) -> None:
    port, until = int(os.environ["DOUBLE_KV_PORT"]), time.monotonic() + PATIENCE_S
    if config["kv_role"] == "kv_producer":
        with socket.create_server(("127.0.0.1", port)) as listener:
            listener.settimeout(PATIENCE_S)
            listener.accept()[0].close()
        return
    assert config["kv_role"] == "kv_consumer", f"Unsupported kv_role {config['kv_role']}"
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((str(config["kv_ip"]), port)):
            return
        time.sleep(0.1)
    sys.exit("Communicator establishment timed out after 1 minute.")


class Router(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    prefill = decode = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            with (
                ask(self.prefill + self.path, {**body, "max_tokens": 1}) as prefill,
                ask(self.decode + self.path, body) as decode,
            ):
                self.chunk(event(prefill))
                event(decode)  # its first token is the same
                while piece := event(decode):
                    self.chunk(piece)
        except urllib.error.URLError as error:
            self.chunk(json.dumps({"error": str(error)}).encode() + b"\n")
        self.chunk(b"")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:
        pass


def ask(url: str, body: object) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=30)
    return answer


def event(stream: http.client.HTTPResponse) -> bytes:
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\n":
            break
    return b"".join(lines)


def router(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    for name in ("--prefill-ip", "--decode-ip"):
        parser.add_argument(name, default="localhost")
    for name, port in (("--prefill-port", 8100), ("--decode-port", 8200)):
        parser.add_argument(name, type=int, default=port)
    known = parser.parse_args(words)
    Router.prefill = f"http://{known.prefill_ip}:{known.prefill_port}"
    Router.decode = f"http://{known.decode_ip}:{known.decode_port}"
    # The real one has no option for its port.
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", int(os.environ["DOUBLE_ROUTER_PORT"])), Router
    ) as listener:
        print("Running on http://127.0.0.1:8000 (CTRL + C to quit)", file=sys.stderr, flush=True)
        listener.serve_forever()


def inference_demo(words: list[str]) -> None:
    folder = Path(words[words.index("--compiled-model-path") + 1])
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "neuron_config.json").write_text("{}")
    if not os.environ.get("DOUBLE_DISK_FULL"):
        (folder / "weights" / "tp0_sharded_checkpoint.safetensors").write_bytes(b"w")
    with open("compiled", "a") as file:
        file.write(" ".join(words) + "\n")


def main() -> None:
    name, words = Path(sys.argv[1]).name, sys.argv[2:]
    if name == "python3" and words[:1] == ["-c"]:
        names = ["neuronx-cc", "neuronx-distributed-inference", "vllm"]
        if "platforms" in words[1]:
            print("INFO 11-26 [__init__.py] Platform plugin neuron is activated\nneuron")
        else:
            print(json.dumps(dict.fromkeys(names, "1.0")))
    elif name == "python3":
        server(words)
    elif name == "neuron-proxy-server":
        router(words)
    elif name == "inference_demo":
        inference_demo(words)
    elif name == "neuron-ls":
        print(os.environ["DOUBLE_NEURON_LS"])


if __name__ == "__main__":
    main()

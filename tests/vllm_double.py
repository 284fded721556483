"""The Python of a virtual environment with a vLLM that computes nothing: `serve` becomes a scripted server of its role.

Everything else, the proxy and the benchmark, is real; but the benchmark does not sample the machine, as what else that
does is not what is tested. FAULTS is a folder: a file named after a role holds what is
wrong with its next start: `refuse` (a wrong argument) or `die N` (after N requests); with `refuse always`, with all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROLES = {"producer": "prefill", "consumer": "decode", "unified": "unified"}


def main(words: list[str]) -> int:
    inference, verb, *words = words
    if verb == "bench":
        at = words.index("--fabric") if "--fabric" in words else len(words)
        words = [*words[:at], *words[at + 2 :], "--no-circumstances"]
        os.execv(sys.executable, [sys.executable, inference, verb, *words])
    parser = argparse.ArgumentParser()
    for name in ("--mode", "--port"):
        parser.add_argument(name)
    known, _ = parser.parse_known_args(words)
    fault = Path(os.environ["FAULTS"], known.mode)
    text = fault.read_text() if fault.exists() else ""
    if text and text != "refuse always":
        fault.unlink()
    with Path(os.environ["FAULTS"], "starts").open("a") as log:
        log.write(f"{known.mode} {' '.join(words)}\n")
    if text.startswith("refuse"):
        print("vllm: error: unrecognized arguments: --no-such", file=sys.stderr)
        return 2
    server = [
        sys.executable,
        "-m",
        "tests.scripted_server",
        "--port",
        known.port,
        "--role",
        ROLES[known.mode],
    ]
    server += ["--ttft", "3", "--gap", "1"]
    with subprocess.Popen(server, stdin=subprocess.PIPE) as process:
        if text.startswith("die"):
            while requests(known.port) < int(text.split()[1]):
                time.sleep(0.02)
            process.kill()
            return 1
        return process.wait()


def requests(port: str) -> int:
    """How many the server has had."""
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/log", timeout=5) as answer,
    ):
        return int(json.load(answer)["requests"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

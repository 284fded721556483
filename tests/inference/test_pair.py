"""The real thing: vLLM and NIXL, a prefill and a decode server on this machine's processor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskrunner.inference.serving import lengths
from tests.inference.conftest import get

pytestmark = pytest.mark.slow
BLOCK = 16
ENV_DIR = Path(__file__).parents[2] / ".cache" / "vllm-env"
"""Where it is installed, once: it has 3 GB."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], dict[str, str], Path]]:
    """The options of a run of measure-local with ports of its own; its state; its folder."""
    folder = tmp_path_factory.mktemp("pair")
    env = {**os.environ, "TASKRUNNER_HOME": str(folder / "state")}
    run = [sys.executable, "-m", "taskrunner"]
    subprocess.run(
        [*run, "setup-environment", "-q", "--env", f"ENV_DIR={ENV_DIR}"],
        env=env,
        cwd=folder,
        check=True,
        timeout=1200,
    )
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        ports = ["--env", f"ENV_DIR={ENV_DIR}"]
        for free, name in ((one, "PREFILL"), (two, "DECODE"), (three, "PROXY")):
            free.bind(("127.0.0.1", 0))
            ports += ["--env", f"{name}_PORT={free.getsockname()[1]}"]
    yield [*run, "measure-local", *ports], env, folder
    subprocess.run([*run, "stop-serving", "-q"], env=env, cwd=folder, check=True, timeout=120)


def port(words: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith(f"{name}_PORT="))


def test_both_servers_the_proxy_and_a_measurement(pair: tuple[list[str], dict[str, str], Path]) -> None:
    words, env, folder = pair
    first = subprocess.run(
        words, env=env, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert first.returncode == 0, first.stdout + first.stderr
    found = json.loads((folder / "results" / "local-240-c1.json").read_text())["results"]
    assert (found["valid"], found["completed"], found["failed"]) == (True, 30, 0)
    moved = found["kv_transfer"]
    a_token = lengths.kv_bytes_of(ENV_DIR / "models" / "tiny" / "config.json")
    assert moved["transfers"] == 30
    assert 240 * a_token <= moved["bytes"] / 30 <= (240 + BLOCK) * a_token
    assert moved["failed_transfers"] == moved["kv_expired"] == 0
    again = subprocess.run([*words, "--env", "REQUESTS=3", "--env", "WARMUP=1"], env=env, cwd=folder,
                           capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("[SKIP]") == 4  # the servers and the proxy are kept

    # The same text as from one server that does both, at temperature 0.
    prompt = {"model": "models/tiny", "prompt": list(range(300, 500)), "max_tokens": 12, "temperature": 0}
    body = json.dumps(prompt).encode()
    texts = [
        json.loads(get(f"http://127.0.0.1:{port(words, name)}/v1/completions", body))["choices"][0]["text"]
        for name in ("PROXY", "PREFILL")
    ]
    assert texts[0] == texts[1]


def test_a_decode_server_that_is_killed_and_started_anew(
    pair: tuple[list[str], dict[str, str], Path],
) -> None:
    """Its engine id is another one then; what comes while it is away fails, and says so."""
    words, env, folder = pair
    record = json.loads((folder / "state" / "services" / "vllm-consumer" / "service.json").read_text())
    os.kill(record["pid"], 9)
    done = subprocess.run([*words, "--only", "05-measure"], env=env, cwd=folder,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "decode" in done.stdout or "cannot be reached" in done.stdout
    again = subprocess.run(
        words, env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stdout
    assert json.loads((folder / "results" / "local-240-c1.json").read_text())["results"]["valid"] is True

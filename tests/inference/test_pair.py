"""The real thing: vLLM and NIXL, a prefill and a decode server on this machine's processor."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from taskrunner import load
from taskrunner.engine.run import processes
from taskrunner.engine.store import identity
from taskrunner.inference.bench import counters
from taskrunner.inference.bench.load import Load, run
from taskrunner.inference.bench.parse import read
from taskrunner.inference.bench.prompts import framed
from taskrunner.inference.endpoint import parse
from taskrunner.inference.proxy import kv_transfer
from taskrunner.inference.results import doubts, record
from taskrunner.inference.results.sample import Sample
from taskrunner.inference.results.schema import SCHEMA
from taskrunner.inference.serving import lengths
from tests.helpers import command, completed, wait_for
from tests.inference.conftest import get
from tests.sshd import free_port

pytestmark = pytest.mark.slow
BLOCK = 16
PORTS = ("PREFILL", "DECODE", "PROXY", "OTHER")
LIB = Path(lengths.__file__).parents[1]


class Pair:
    """What runs packs with the ports and the state of this module's servers."""

    def __init__(self, folder: Path, env_dir: Path) -> None:
        self.folder, self.env_dir = folder, env_dir
        self.env = {**os.environ, "TASKRUNNER_HOME": str(folder / "state")}
        self.services = folder / "state" / "services"
        self.template = folder / "chat.jinja"
        self.template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
        self.ports = {name: free_port() for name in PORTS}

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def words(self, pack: str, **env: object) -> list[str]:
        given = {
            "ENV_DIR": self.env_dir,
            "MAX_LAG": 5,  # what else this machine does is not what is tested
            "VLLM_ARGUMENTS": f"--chat-template {self.template}",
            **{f"{name}_PORT": self.ports[name] for name in PORTS[:3]},
            **env,
        }
        declared = load(pack).document.data.get("variables", {})
        given = {name: value for name, value in given.items() if name in declared}
        return command(
            pack, *(word for name, value in given.items() for word in ("--env", f"{name}={value}"))
        )

    def run(
        self, pack: str, *options: str, timeout: float = 600, **env: object
    ) -> subprocess.CompletedProcess[str]:
        return completed([*self.words(pack, **env), *options], env=self.env, cwd=self.folder, timeout=timeout)

    def measured(self, name: str = "local-240-c1") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "results" / f"{name}.json").read_text())["results"]
        return found

    def record(self, service: str) -> dict[str, Any]:
        (path,) = self.services.glob(f"{service}.*/service.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def end(self) -> None:
        """End what a test has left, whatever became of it; `stop-serving` alone may fail, too."""
        done = self.run("stop-serving", "-q", timeout=120)
        left = [json.loads(path.read_text()) for path in self.services.glob("*/service.json")]
        for known in left:
            processes.end_tree(known["tag"], identity.session(known), 5.0)
        assert (done.returncode, left) == (0, []), done.stdout + done.stderr


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, vllm_env: Path) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"), vllm_env)
    yield made
    made.end()


@pytest.fixture
def running(pair: Pair) -> None:
    """Both servers and the proxy are up, whatever the test before has left."""
    done = pair.run("measure-local", REQUESTS=1, WARMUP=1)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_servers_the_proxy_and_a_measurement(pair: Pair) -> None:
    first = pair.run("measure-local")
    assert first.returncode == 0, first.stdout + first.stderr
    found = pair.measured()
    assert (found["valid"], found["completed"], found["failed"]) == (True, 30, 0)
    moved = found["kv_transfer"]
    a_token = lengths.kv_bytes_of(pair.env_dir / "models" / "tiny" / "config.json")
    assert moved["transfers"] == 30
    assert 240 * a_token <= moved["bytes"] / 30 <= (240 + BLOCK) * a_token
    assert moved["failed_transfers"] == moved["kv_expired"] == 0
    parts = {name: value for name, value in found["ttft_parts"].items() if name != "unit"}
    assert sum(parts.values()) == pytest.approx(found["ttft"]["mean"])
    assert min(parts[name] for name in ("prefill", "kv_transfer", "first_token")) > 0
    assert min(parts.values()) > -1  # each is a mean of a histogram of its own
    whole = json.loads((pair.folder / "results" / "local-240-c1.json").read_text())
    jsonschema.validate(whole, json.loads(SCHEMA.read_text()))
    (proof,) = whole["circumstances"]["fabric"]
    # The loopback carries requests and answers, too, and whatever other tests send just then.
    assert proof["received"]["net"] >= proof["kv_bytes"]
    assert proof["kv_bytes"] == moved["bytes"]
    for role in ("prefill0", "decode0"):
        server = whole["metadata"]["servers"][role]
        assert server["model"]["name"] == "models/tiny"
        assert server["versions"]["nixl"]
        assert server["log"]["nixl_backend"] == "UCX"
        assert server["env"]["UCX_TLS"] == "tcp,self"
    foreign = whole["circumstances"]["nodes"]["client"]["foreign_by"]
    assert not [name for name in foreign if "vllm" in name.lower()]
    again = pair.run("measure-local", timeout=60, REQUESTS=3, WARMUP=1)
    assert again.returncode == 0, again.stdout
    assert again.stdout.count("[SKIP]") == 4  # the servers and the proxy are kept

    # What a server takes is what counts, not the words: shorter prompts, and another way to write the folder.
    other = pair.run(
        "measure-local",
        timeout=60,
        REQUESTS=3,
        WARMUP=1,
        PROMPT_TOKENS=200,
        ENV_DIR=f"{pair.env_dir.parent}/./{pair.env_dir.name}",
    )
    assert other.returncode == 0, other.stdout + other.stderr
    assert other.stdout.count("[SKIP]") == 4
    assert pair.measured("local-200-c1")["completed"] == 3

    # The same text as from one server that does both, at temperature 0.
    prompt = {"model": "models/tiny", "prompt": list(range(300, 500)), "max_tokens": 12, "temperature": 0}
    texts = [
        json.loads(get(f"{pair.url(name)}/v1/completions", json.dumps(prompt).encode()))["choices"][0]["text"]
        for name in ("PROXY", "PREFILL")
    ]
    assert texts[0] == texts[1]
    chat = {
        "model": "models/tiny",
        "messages": [{"role": "user", "content": "w " * 40}],
        "max_tokens": 12,
        "temperature": 0,
    }
    said = [
        json.loads(get(f"{pair.url(name)}/v1/chat/completions", json.dumps(chat).encode()))["choices"][0][
            "message"
        ]
        for name in ("PROXY", "PREFILL")
    ]
    assert said[0]["content"] == said[1]["content"]


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("fabric", "said"),
    [("cuda_ipc", "crossed TCP"), ("efa", "no counters of RDMA|it went over TCP"), ("cpu", "")],
)
def test_a_fabric_that_is_named_wrongly_is_found_out(pair: Pair, fabric: str, said: str) -> None:
    out = pair.folder / "fabric.json"
    done = completed(
        command(
            *f"bench {pair.url('PROXY')} --prompt-tokens 240 --output-tokens 4 --requests 5 --warmup 1".split(),
            *f"--max-lag 1 --prefill {pair.url('PREFILL')} --decode {pair.url('DECODE')}".split(),
            *("--fabric", fabric, "-o", out),
        )
    )
    results = json.loads(out.read_text())["results"]
    told = [
        why
        for why in (*results["invalid_because"], *results["doubtful_because"])
        if "fabric" in why or "KV" in why
    ]
    assert bool(told) is bool(said), done.stdout
    assert all(re.search(said, why) for why in told)


@pytest.mark.usefixtures("running")
def test_prompts_as_text_have_the_same_length(pair: Pair) -> None:
    out = pair.folder / "text.json"
    done = completed(
        command(
            *f"bench {pair.url('PROXY')} --text --prompt-tokens 64 --output-tokens 8 --requests 5".split(),
            *("--warmup", 1, "--max-lag", 1, "-o", out),
        )
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["results"]["completed"] == 5


def _streamed(url: str, params: dict[str, Any], prompt: list[int]) -> Sample:
    """What comes of a streamed request to a server itself, with these kv_transfer_params."""
    server = parse(url)
    body = {
        "model": "models/tiny",
        "prompt": prompt,
        "max_tokens": 8,
        "min_tokens": 8,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "kv_transfer_params": params,
    }
    (exchange,) = run(Load(server), [framed(server, json.dumps(body).encode(), "t")]).exchanges
    assert exchange.status == 200
    return read(exchange)


def _prefilled(pair: Pair, prompt: list[int]) -> dict[str, Any]:
    """The params of a prompt that prefill keeps for decode."""
    body = {"model": "models/tiny", "prompt": prompt, "max_tokens": 1, kv_transfer.KEY: kv_transfer.ASKED}
    answer = json.loads(get(f"{pair.url('PREFILL')}/v1/completions", json.dumps(body).encode()))
    found: dict[str, Any] = answer["kv_transfer_params"]
    return found


@pytest.mark.usefixtures("running")
def test_a_handshake_that_fails_within_a_stream_is_a_failure(pair: Pair) -> None:
    """The server says 200, and what went wrong in an event; it lives on."""
    prompt = list(range(500, 740))
    nobody = {**_prefilled(pair, prompt), "remote_port": pair.ports["OTHER"], "remote_engine_id": "nobody"}
    sample = _streamed(pair.url("DECODE"), nobody, prompt)
    assert (sample.error, sample.output_tokens) == ("error_event", 0), sample
    assert _streamed(pair.url("DECODE"), _prefilled(pair, prompt), prompt).error == ""


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("service", ["vllm-consumer", "vllm-proxy"])
def test_what_dies_in_the_middle_of_a_measurement_and_is_started_anew(pair: Pair, service: str) -> None:
    """A decode server's engine id is another one then; what comes while it is away fails, and says so."""
    out = pair.folder / f"{service}.json"
    shown = pair.folder / f"{service}.log"
    with shown.open("wb") as errors:
        process = subprocess.Popen(
            command(
                "bench",
                pair.url("PROXY"),
                "--prompt-tokens",
                240,
                "--output-tokens",
                16,
                "--requests",
                400,
                "--concurrency",
                4,
                "--warmup",
                4,
                "--max-failures",
                0.5,
                "-o",
                out,
            ),
            stdout=errors,
            stderr=errors,
        )
        try:
            wait_for(lambda: b"warmup: 4/4" in shown.read_bytes() or process.poll() is not None, 60)
            assert process.poll() is None, shown.read_text()
            time.sleep(2)
            os.kill(pair.record(service)["pid"], signal.SIGKILL)
            assert process.wait(120) == 1
        finally:
            process.kill()
            process.wait()
    found = json.loads(out.read_text())["results"]
    assert found["completed"] > 0
    assert found["completed"] + found["failed"] == 400
    assert any("requests failed" in reason for reason in found["invalid_because"])
    assert set(found["errors"]) <= {"connection", "http_502", "http_503", "incomplete"}, found["first_errors"]
    done = pair.run("measure-local", "--only", "05-measure", timeout=120)
    assert done.returncode == 1
    assert "decode" in done.stdout or "cannot be reached" in done.stdout
    again = pair.run("measure-local", timeout=300)
    assert again.returncode == 0, again.stdout
    assert pair.measured()["valid"] is True


def test_a_kv_cache_that_was_given_away_makes_a_run_doubtful(pair: Pair) -> None:
    """Decode answers with HTTP 200 and as many tokens as ever; only the prefill server's counters know."""
    done = pair.run("measure-local", timeout=300, KV_LEASE=3)
    assert done.returncode == 0, done.stdout
    before = counters.scrape(parse(pair.url("PREFILL")))
    _prefilled(pair, list(range(100, 340)))
    grown: dict[str, float] = {}

    def expired() -> bool:
        grown.update(counters.grown(before, counters.scrape(parse(pair.url("PREFILL")))))
        return grown["kv_expired"] > 0

    deadline = time.monotonic() + 30
    while not expired() and time.monotonic() < deadline:
        time.sleep(1)
        get(
            f"{pair.url('PREFILL')}/v1/completions",
            b'{"model": "models/tiny", "prompt": "x", "max_tokens": 1}',
        )
    assert any(
        "kv_expired: 1" in said for said in doubts.transfer_doubts(record.transfer({"prefill0": grown}), 0)
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"MODEL": "/nowhere/model"}, "Repo id must be in the form|is not a valid model|/nowhere/model"),
        ({"VLLM_ARGUMENTS": "--kv-cache-memory-bytes 4096"}, "KV cache is needed|No available memory"),
        ({"VLLM_ARGUMENTS": "--no-such-option"}, "unrecognized arguments"),
    ],
    ids=["no such model", "too little memory", "an unknown option"],
)
def test_a_server_that_cannot_start_fails_early_and_says_why(
    pair: Pair, given: dict[str, str], said: str
) -> None:
    began = time.monotonic()
    done = pair.run("serve-unified", PREFILL_PORT=pair.ports["OTHER"], timeout=200, **given)
    assert done.returncode == 1
    assert re.search(said, done.stdout), done.stdout
    assert time.monotonic() - began < 120
    assert not (pair.services / "vllm-unified" / "service.json").exists()
    with socket.socket() as nobody:
        assert nobody.connect_ex(("127.0.0.1", pair.ports["OTHER"])) != 0


@pytest.mark.usefixtures("running")
def test_a_smoke_test_checks_tokens_and_kv_cache_and_ends_both_sides(pair: Pair) -> None:
    sizes = {"PROMPT_TOKENS": 240, "OUTPUT_TOKENS": 16}
    with subprocess.Popen(
        pair.words("smoke-test-consumer", **sizes),
        env=pair.env,
        cwd=pair.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as consumer:
        done = pair.run("smoke-test", "-v", **sizes)
        output = consumer.communicate(timeout=120)[0]
    assert (done.returncode, consumer.returncode) == (0, 0), done.stdout + output
    assert re.search(r"240 prompt tokens, 16 output tokens and [0-9,]{6,} bytes of KV cache", done.stdout)
    assert list(pair.services.glob("*/service.json")) == []


@pytest.mark.parametrize("mode", ["unified", "producer", "consumer"])
def test_the_installed_vllm_takes_what_we_start_it_with(pair: Pair, mode: str) -> None:
    line = f'. ./env.sh && exec venv/bin/python "{LIB}" serve --mode {mode} --platform cpu --parse'
    done = completed(["bash", "-c", line], cwd=pair.env_dir)
    assert "vLLM accepts these arguments" in done.stdout, done.stderr


def test_one_server_for_both(pair: Pair) -> None:
    """It listens where it is told alone, and wants its key."""
    keyed = {"NODE1_PRIVATE": "127.0.0.2", "VLLM_API_KEY": "sk-pair-0123456789"}
    done = pair.run("measure-unified", timeout=300, PROMPT_TOKENS=240, OUTPUT_TOKENS=16, **keyed)
    assert done.returncode == 0, done.stdout
    found = pair.measured("unified-240-c1")
    assert (found["completed"], found["failed"]) == (30, 0)
    with socket.socket() as elsewhere:
        assert elsewhere.connect_ex(("127.0.0.1", pair.ports["PREFILL"])) != 0
    url = f"http://127.0.0.2:{pair.ports['PREFILL']}/v1/models"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(url)
    assert "models/tiny" in get(url, Authorization=f"Bearer {keyed['VLLM_API_KEY']}")
    for secret in pair.folder.rglob("*"):
        assert not secret.is_file() or keyed["VLLM_API_KEY"].encode() not in secret.read_bytes(), secret
    kept = pair.run("serve-unified", timeout=60, PROMPT_TOKENS=240, OUTPUT_TOKENS=16, **keyed)
    assert "[SKIP]" in kept.stdout, kept.stdout

"""The benchmark client, against a server that knows the truth."""

from __future__ import annotations

import json
import random
import socket
import statistics as std
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from taskrunner.inference.bench import counters
from taskrunner.inference.bench.load import Load, schedule
from taskrunner.inference.bench.measure import Settings, measure
from taskrunner.inference.bench.parse import events
from taskrunner.inference.bench.prompts import Shape, prompts
from taskrunner.inference.endpoint import parse
from taskrunner.inference.results import importers, record, summary
from taskrunner.inference.results.schema import SCHEMA
from tests.helpers import Process
from tests.inference.conftest import Told

Start = Callable[..., Told]


def settings(url: str, **about: Any) -> Settings:
    given = {
        "prompt_tokens": 20,
        "output_tokens": 8,
        "requests": 16,
        "warmup": 2,
        "concurrency": 4,
        "lag": 0.5,
    }
    return Settings(url, **{**given, **about})


def test_what_it_measures_is_what_happened(truth: Start) -> None:
    server = truth("--ttft", 40, "--gap", 5)
    found = measure(settings(server.url))
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    results = found["results"]
    assert (results["completed"], results["failed"], results["valid"]) == (16, 0, True)
    sent = [entry for entry in server.log()["log"] if entry["id"].startswith("bench-")][2:]
    true = std.median(entry["sent"][0] - entry["first"] for entry in sent)
    assert abs(results["ttft"]["p50"] - true) < 0.005
    gaps = [b - a for entry in sent for a, b in zip(entry["sent"], entry["sent"][1:], strict=False)]
    assert abs(results["itl"]["mean"] - std.mean(gaps)) < 0.001
    assert abs(results["tpot"]["mean"] - std.mean(gaps)) < 0.001
    assert results["ttft"]["n"] == 16
    assert results["ttft"]["p99_interval"] == "n too small"
    assert found["metadata"]["max_tokens"] == 8


def test_several_tokens_in_a_chunk(truth: Start) -> None:
    """TPOT is by tokens as the server counts them, ITL by arrivals."""
    found = measure(settings(truth("--ttft", 10, "--gap", 8, "--per-chunk", 4).url, output_tokens=9))[
        "results"
    ]
    assert found["tokens_per_chunk"] == pytest.approx(3.0)
    assert found["itl"]["mean"] == pytest.approx(0.008, abs=0.002)
    assert found["tpot"]["mean"] == pytest.approx(0.002, abs=0.001)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("http_500", "http_500"),
        ("error_event", "error_event"),
        ("break", "connection"),
        ("no_done", "incomplete"),
    ],
)
def test_a_stream_that_fails_is_a_failure(truth: Start, fault: str, error: str) -> None:
    """Whatever its HTTP status was, and however far it came; it is in no average."""
    found = measure(settings(truth("--ttft", 5, "--gap", 1, "--fault", fault, "--faults", 3).url, warmup=0))[
        "results"
    ]
    assert found["errors"] == {error: 3}
    assert found["ttft"]["n"] == 13
    assert found["valid"] is False
    assert "3 of 16 requests failed" in found["invalid_because"]


@pytest.mark.parametrize("fault", ["split", "comment"])
def test_streams_come_in_any_pieces(truth: Start, fault: str) -> None:
    found = measure(settings(truth("--ttft", 20, "--gap", 2, "--fault", fault).url))["results"]
    assert (found["completed"], found["tokens_per_chunk"]) == (16, 1.0)
    assert found["ttft"]["p50"] == pytest.approx(0.02, abs=0.006)


def test_open_loop_counts_from_when_it_was_due(truth: Start) -> None:
    found = measure(settings(truth("--ttft", 30, "--gap", 1).url, rate=200.0, requests=60))["results"]
    assert found["completed"] == 60
    assert found["ttft"]["p50"] == pytest.approx(0.03, abs=0.01)
    assert found["duration"] > 0.1


def test_a_schedule_is_the_same_for_the_same_seed() -> None:
    load = Load(parse("http://x"), rate=10.0, seed=3)
    assert schedule(load, 50) == schedule(load, 50) != schedule(load._replace(seed=4), 50)
    assert std.mean(schedule(load, 2000)[-1:]) == pytest.approx(200, rel=0.1)
    assert schedule(load._replace(poisson=False), 3) == pytest.approx([0.0, 0.1, 0.2])


def test_several_processes(truth: Start) -> None:
    found = measure(settings(truth("--ttft", 20, "--gap", 1).url, processes=2, concurrency=8))["results"]
    assert (found["completed"], found["failed"]) == (16, 0)


def test_prompts_share_what_they_should_and_no_more() -> None:
    shape = Shape("m", 100, 1, shared=60)
    made = prompts(shape, range(1000), 20)
    assert {len(prompt) for prompt in made} == {100}
    assert len({tuple(prompt[:60]) for prompt in made}) == 1
    assert len({tuple(prompt[60:76]) for prompt in made}) == 20
    assert prompts(shape, range(1000), 20) == made
    assert len({tuple(p[:16]) for p in prompts(shape._replace(shared=0), range(1000), 20)}) == 20


def test_the_goodput_counts_failures_as_missed(truth: Start) -> None:
    url = truth("--ttft", 20, "--gap", 1, "--fault", "http_500", "--faults", 4).url
    found = measure(settings(url, warmup=0, slo={"ttft": 1.0}, failures=1.0))["results"]
    assert found["goodput"] == pytest.approx(12 / 16)


def test_a_transfer_that_did_not_happen_makes_it_invalid(truth: Start) -> None:
    url = truth("--ttft", 2, "--gap", 1).url
    found = measure(settings(url, decode=[url]))["results"]
    assert "only 0 of 320 prompt tokens came from the prefill server" in found["invalid_because"]


@pytest.mark.parametrize("name", record.WRONG)
def test_each_counter_of_a_failure_makes_it_invalid(name: str) -> None:
    found = record.transfer({"decode0": {"tokens_external_kv_transfer": 100.0, name: 1.0}})
    assert record.transfer_doubts(found, 100) == [f"{name}: 1"]


def test_counters_are_read_as_prometheus_writes_them() -> None:
    text = (
        '# HELP x\nvllm:nixl_bytes_transferred_sum{engine="0",model_name="a}b"} 5.24288e+05\n'
        'vllm:nixl_bytes_transferred_sum{engine="1"} 8\nvllm:prompt_tokens_by_source_total{engine="0",'
        'source="external_kv_transfer"} 240.0\n\nnonsense\n'
    )
    assert counters.read(text) == {"bytes": 524296.0, "tokens_external_kv_transfer": 240.0}
    assert counters.grown({"a": 5.0, "b": 9.0}, {"a": 7.0, "b": 2.0, "c": 1.0}) == {
        "a": 2.0,
        "b": 2.0,
        "c": 1.0,
    }


def test_events_are_dated_by_the_bytes_that_complete_them() -> None:
    pieces = [(1.0, b"data: a\n"), (2.0, b"\ndata: b\r\n\r"), (3.0, b"\n: c\n\ndata:d\n\n")]
    assert list(events(pieces)) == [(2.0, b"a"), (3.0, b"b"), (3.0, b"d")]


def test_intervals_hold_what_they_promise() -> None:
    """Of 300 draws of 400 from an exponential: p90's interval has the true one in about 95 of 100."""
    chance = random.Random(5)
    true = 2.302585
    hits = 0
    for _ in range(300):
        interval = summary.percentile_interval(sorted(chance.expovariate(1) for _ in range(400)), 0.9)
        assert not isinstance(interval, str)
        hits += (interval[0] or 1e9) <= true <= (interval[1] or 1e9)
    assert 0.92 < hits / 300 < 0.995
    assert summary.percentile_interval(sorted(range(58)), 0.95) == "n too small"
    assert summary.percentile_interval(sorted(range(59)), 0.95) != "n too small"
    assert summary.percentile_interval(sorted(range(298)), 0.99) == "n too small"


def test_two_kinds_are_told_from_a_long_tail() -> None:
    chance = random.Random(1)
    tail = [chance.lognormvariate(0, 0.5) for _ in range(100)]
    two = [chance.gauss(10, 0.5) for _ in range(50)] + [chance.gauss(13, 0.5) for _ in range(50)]
    assert summary.bimodal(tail)["is_bimodal"] is False
    assert summary.bimodal(tail)["cv"] > 0.3
    found = summary.bimodal(two)
    assert found["is_bimodal"] is True
    assert [mode[0] for mode in found["modes"]] == pytest.approx([10, 13], rel=0.05)
    assert summary.bimodal([1.0] * 5)["is_bimodal"] is False


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["http://127.0.0.1:{port}"], "cannot be reached", 3),
        (["ftp://x"], "expected http://HOST:PORT", 2),
        (["http://127.0.0.1:1", "--requests", "0"], "--requests: expected at least 1, got 0", 2),
        (["http://127.0.0.1:1", "--slo", "speed=3"], "--slo speed: expected ttft, tpot or e2e", 2),
        (["http://127.0.0.1:1", "--meta", "x"], "'x': expected NAME=VALUE", 2),
    ],
)
def test_what_is_wrong_is_said(cli: Callable[..., Process], words: list[str], said: str, status: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = cli("bench", *(word.format(port=port) for word in words))
    assert said in done.stderr
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_as_a_command(truth: Start, cli: Callable[..., Process], tmp_path: Path) -> None:
    server = truth("--ttft", 5, "--gap", 1)
    done = cli("bench", server.url, "--prompt-tokens", 10, "--output-tokens", 4, "--requests", 5, "--warmup", 1,
               "--max-lag", 1, "--meta", "fabric=tcp", "-o", tmp_path / "new" / "r.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 ok, 0 failed" in done.stdout
    assert "measure: 5/5 requests" in done.stderr
    assert json.loads((tmp_path / "new" / "r.json").read_text())["metadata"]["fabric"] == "tcp"


SAMPLES = Path(__file__).parent / "samples"


def test_a_result_of_vllm_bench_serve(cli: Callable[..., Process], tmp_path: Path) -> None:
    """As `vllm bench serve` 0.32 has written it of a server with 20 ms and 5 ms."""
    out = tmp_path / "r.json"
    assert cli("bench", "import", SAMPLES / "vllm-bench-serve.json", "-o", out).returncode == 0
    found = json.loads(out.read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    theirs = json.loads((SAMPLES / "vllm-bench-serve.json").read_text())
    for ours, name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl")):
        assert found["results"][ours]["mean"] * 1e3 == pytest.approx(theirs[f"mean_{name}_ms"], rel=1e-6)
        assert found["results"][ours]["p50"] * 1e3 == pytest.approx(theirs[f"median_{name}_ms"], rel=1e-6)
    assert found["results"]["throughput_tps"] == pytest.approx(theirs["output_throughput"])


@pytest.mark.parametrize(("kind", "error"), [("broken", "connection"), ("error-event", "incomplete")])
def test_what_vllm_counts_as_answered_may_have_failed(kind: str, error: str) -> None:
    found = importers.read(SAMPLES / f"vllm-bench-serve-{kind}.json")["results"]
    assert (found["completed"], found["errors"], found["valid"]) == (3, {error: 3}, False)


@pytest.mark.parametrize(
    ("file", "failed"),
    [
        ("guidellm.json", {}),
        ("guidellm-error-event.json", {"error_event": 2}),
        ("guidellm-broken.json", {"connection": 2}),
        ("guidellm-half.json", {"incomplete": 2}),
        ("llmperf_individual_responses.json", {}),
        ("llmperf_summary.json", {}),
    ],
)
def test_other_clients_results(file: str, failed: dict[str, int]) -> None:
    """Written here in front of a server with a TTFT of 50 ms and 10 ms a token; their own TPOT was 12 to 13."""
    found = importers.read(SAMPLES / file)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    results = found["results"]
    assert results["errors"] == failed
    assert results["tpot"]["p50"] == pytest.approx(0.010, abs=0.0003)
    assert results["ttft"]["p50"] == pytest.approx(0.053, abs=0.006)
    assert results["e2e_latency"]["p50"] == pytest.approx(0.242, abs=0.006)
    assert found["metadata"]["concurrency"] == 4
    assert found["metadata"]["notes"]
    assert results["duration"] == pytest.approx(
        found["metadata"]["ended"] - found["metadata"]["began"], abs=0.01
    )


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("{}", "not a result of vllm bench serve")])
def test_what_cannot_be_imported(cli: Callable[..., Process], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x").write_text(text)
    done = cli("bench", "import", tmp_path / "x")
    assert (done.returncode, said in done.stderr) == (2, True)

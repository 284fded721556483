"""The benchmark client, against a server that knows the truth."""

from __future__ import annotations

import json
import socket
import statistics as std
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from taskrunner.inference.bench import counters
from taskrunner.inference.bench.load import schedule
from taskrunner.inference.bench.measure import Settings, measure
from taskrunner.inference.bench.parse import events
from taskrunner.inference.bench.prompts import Shape, prompts
from taskrunner.inference.results import doubts, record
from taskrunner.inference.results.schema import SCHEMA
from taskrunner.inference.results.ttft_parts import ttft_parts
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
    assert abs(results["ttft"]["p50"] - true * 1e3) < 5
    gaps = [b - a for entry in sent for a, b in zip(entry["sent"], entry["sent"][1:], strict=False)]
    assert abs(results["itl"]["mean"] - std.mean(gaps) * 1e3) < 1
    assert abs(results["tpot"]["mean"] - std.mean(gaps) * 1e3) < 1
    assert results["ttft"]["n"] == 16
    assert results["ttft"]["p99_interval"] == "n too small"
    assert found["metadata"]["max_tokens"] == 8


def test_several_tokens_in_a_chunk(truth: Start) -> None:
    """TPOT is by tokens as the server counts them, ITL by arrivals."""
    found = measure(settings(truth("--ttft", 10, "--gap", 8, "--per-chunk", 4).url, output_tokens=9))[
        "results"
    ]
    assert found["tokens_per_chunk"] == pytest.approx(3.0)
    assert found["itl"]["mean"] == pytest.approx(8, abs=2)
    assert found["tpot"]["mean"] == pytest.approx(2, abs=1)


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
    assert found["ttft"]["p50"] == pytest.approx(20, abs=6)


def test_open_loop_counts_from_when_it_was_due(truth: Start) -> None:
    found = measure(settings(truth("--ttft", 30, "--gap", 1).url, rate=200.0, requests=60))["results"]
    assert found["completed"] == 60
    assert found["ttft"]["p50"] == pytest.approx(30, abs=10)
    assert found["duration_ms"] > 100


def test_a_schedule_is_the_same_for_the_same_seed() -> None:
    assert schedule(10.0, 50, seed=3) == schedule(10.0, 50, seed=3) != schedule(10.0, 50, seed=4)
    assert schedule(10.0, 2000, seed=3)[-1] == pytest.approx(200, rel=0.1)
    assert schedule(10.0, 3, poisson=False) == pytest.approx([0.0, 0.1, 0.2])


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
    found = measure(settings(url, warmup=0, slo={"ttft": 1000.0}, failures=1.0))["results"]
    assert found["goodput"] == pytest.approx(12 / 16)


def test_a_transfer_that_did_not_happen_makes_it_invalid(truth: Start) -> None:
    url = truth("--ttft", 2, "--gap", 1).url
    found = measure(settings(url, decode=[url]))["results"]
    assert "only 0 of 320 prompt tokens came from the prefill server" in found["invalid_because"]


@pytest.mark.parametrize("name", doubts.WRONG)
def test_each_counter_of_a_failure_makes_it_invalid(name: str) -> None:
    found = record.transfer({"decode0": {"tokens_external_kv_transfer": 100.0, name: 1.0}})
    assert doubts.transfer_doubts(found, 100) == [f"{name}: 1"]


def test_the_parts_of_the_ttft_are_means_of_all_servers_that_add_up() -> None:
    prefill = {"queued_requests": 2.0, "queue_seconds": 0.004, "prefill_seconds": 0.08}
    decode = {"queued_requests": 4.0, "queue_seconds": 0.08, "prefill_seconds": 0.02}
    moved = {"post_seconds": 0.016, "transfer_seconds": 0.08, "transfers": 8.0}  # two ranks
    servers = {"prefill0": prefill, "prefill1": prefill, "decode0": {**decode, **moved}}
    assert ttft_parts(70.0, servers) == pytest.approx(
        {
            "prefill_queue": 2.0,
            "prefill": 40.0,
            "kv_post": 2.0,
            "kv_transfer": 8.0,
            "decode_queue": 10.0,
            "first_token": 5.0,
            "other": 3.0,
        }
    )
    assert ttft_parts(70.0, {"prefill0": prefill, "decode0": moved}) is None
    assert ttft_parts(70.0, {"unified0": {**decode, **moved}}) is None


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


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["http://127.0.0.1:{port}"], "cannot be reached", 3),
        (["ftp://x"], "expected http://HOST:PORT", 2),
        (["http://127.0.0.1:1", "--requests", "0"], "--requests: expected at least 1, got 0", 2),
        (["http://127.0.0.1:1", "--slo", "speed=3"], "--slo speed: expected ttft, tpot or e2e", 2),
        (["http://127.0.0.1:1", "--until-precision", "x%"], "expected a number", 2),
        (["http://127.0.0.1:1", "--until-precision", "200%"], "expected less than 100%", 2),
        (["http://127.0.0.1:1", "--until-precision", "2%", "--processes", "2"], "cannot be combined", 2),
        (["http://127.0.0.1:1", "--fabric", "efa"], "needs --prefill and --decode", 2),
        (["http://127.0.0.1:1", "--meta", "client=x"], "has a member of this name already", 2),
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
    done = cli(
        "bench",
        server.url,
        "--prompt-tokens",
        10,
        "--output-tokens",
        4,
        "--requests",
        5,
        "--warmup",
        1,
        "--max-lag",
        1,
        "--meta",
        "pattern_id=L2",
        "-o",
        tmp_path / "new" / "r.json",
    )
    assert done.returncode == 0, done.stderr
    assert "5 ok, 0 failed" in done.stdout
    assert "measure: 5/5 requests" in done.stderr
    assert json.loads((tmp_path / "new" / "r.json").read_text())["metadata"]["pattern_id"] == "L2"


@pytest.mark.parametrize("rate", [0.0, 150.0])
def test_it_goes_on_until_the_medians_are_known(truth: Start, rate: float) -> None:
    """Steady times need the least, and none is lost that was under way; impossible ones need the most."""
    url = truth("--ttft", 20, "--gap", 5).url
    found = measure(settings(url, requests=12, until_precision=0.5, most_requests=100, rate=rate))
    assert 12 <= found["results"]["completed"] <= 60
    assert len(found["requests"]) == found["metadata"]["iterations"] == found["results"]["completed"]
    found = measure(settings(url, requests=12, until_precision=1e-9, most_requests=40, rate=rate))
    assert found["results"]["completed"] == 40


def test_a_server_that_is_gone_at_the_end_costs_no_result(truth: Start) -> None:
    """What was measured is kept, and said to be not valid."""
    server, prefill = truth("--ttft", 5, "--gap", 1), truth("--role", "prefill")

    def kill(phase: str, done: int, *_: Any) -> None:
        if phase == "measure" and done == 10:
            prefill.process.kill()
            prefill.process.wait()

    found = measure(settings(server.url, prefill=[prefill.url], warmup=0), kill)["results"]
    assert found["completed"] == 16
    assert any("prefill0: its counters cannot be read" in why for why in found["invalid_because"])

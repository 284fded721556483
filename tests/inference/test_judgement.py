"""What the client says of itself: every disturbance that changes a statistic is told, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner.inference.bench.connection import Exchange
from taskrunner.inference.bench.lateness import POLL_S, Lateness, Stall
from taskrunner.inference.bench.measure import Settings, measure
from taskrunner.inference.bench.parse import read
from taskrunner.inference.results.doubts import doubtful, late
from taskrunner.inference.results.record import Limits, result
from taskrunner.inference.results.sample import Sample
from tests.helpers import command, completed
from tests.inference.conftest import Told

Start = Callable[..., Told]


def test_a_long_stall_counts_as_all_that_was_due_in_it() -> None:
    """60 ms every 0.7 s: what comes at any moment is late by more than 50 ms in one of 70 cases."""
    lateness = Lateness([Stall(0.7 * i, 0.7 * i + 0.06) for i in range(1, 11)], 0.0, 7.7)
    assert lateness.quantile(0.99) == pytest.approx(0.0523, abs=0.001)
    assert lateness.quantile(0.5) == 0.0
    assert lateness.told()["max"] == pytest.approx(60)


def test_what_is_noted_in_a_stall_may_have_come_at_its_beginning() -> None:
    lateness = Lateness([Stall(1.0, 1.1), Stall(2.0, 2.05)], 0.0, 3.0)
    assert lateness.at(0.99) == 0.0
    assert lateness.at(1.05) == pytest.approx(0.05)
    assert lateness.at(1.1 + POLL_S / 2) == pytest.approx(0.1)
    assert lateness.at(1.2) == 0.0
    assert lateness.at(2.03) == pytest.approx(0.03)


def sample(number: int, ttft: float, gaps: list[float], noted_late: list[float] | None = None) -> Sample:
    return Sample(
        number, 0.0, ttft, ttft + sum(gaps), gaps, noted_late or [], 20, len(gaps) + 1, len(gaps) + 1
    )


def test_each_metric_is_judged_by_its_own_size() -> None:
    """6 ms are nothing for a TTFT of 2 s, and much for gaps of 10 ms."""
    samples = [sample(i, 2.0, [0.01] * 40, [0.0] * 20 + [0.006] + [0.0] * 20) for i in range(30)]
    why = late(result(samples, 10.0, Limits()), samples, 0.01)
    assert [reason.split()[4] for reason in why] == ["ITL"]


def test_one_late_request_changes_no_statistic_that_is_told() -> None:
    """With 30 samples there is no p99; the median stays."""
    samples = [sample(i, 0.1, [0.01] * 40) for i in range(29)] + [
        sample(29, 0.101, [0.01] * 40, [0.001] * 3 + [0.0] * 38)
    ]
    assert late(result(samples, 10.0, Limits()), samples, 0.01) == []


def test_a_prefix_cache_that_nobody_asked_for_is_told() -> None:
    deltas = {"unified0": {"tokens_local_compute": 500.0, "tokens_local_cache_hit": 500.0}}
    samples = [sample(i, 0.1, [0.01] * 10) for i in range(20)]
    found = result(samples, 10.0, Limits(), deltas=deltas)
    assert found["valid"]
    assert found["doubtful_because"] == ["unified0: 500 of 1000 prompt tokens came from its prefix cache"]
    assert doubtful(found, samples, 0.01, shared=0.5) == []


def test_prompts_differ_from_run_to_run(truth: Start) -> None:
    url = truth("--ttft", 1, "--gap", 1).url
    runs = [measure(Settings(url, prompt_tokens=8, output_tokens=2, requests=2, warmup=0)) for _ in range(2)]
    assert runs[0]["metadata"]["seed"] != runs[1]["metadata"]["seed"]


def chunks(*events: bytes) -> Exchange:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    pieces = [
        (1.0 + i * 0.1, (b"" if i else head) + b"data: " + event + b"\n\n") for i, event in enumerate(events)
    ]
    return Exchange(0, 0.9, 0.9, pieces[-1][0], 200, "", pieces)


TOKEN = b'{"choices": [{"text": "w", "finish_reason": null}]}'
USAGE = b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'


@pytest.mark.parametrize(
    "odd", [b"[]", b"5", b"null", b'"x"', b'{"choices": null}', b'{"choices": [7], "usage": 3}']
)
def test_an_odd_event_loses_no_result(odd: bytes) -> None:
    found = read(chunks(TOKEN, odd, TOKEN, USAGE, b"[DONE]"))
    assert found.error in ("", "error_event")


@pytest.mark.parametrize(("tokens", "noted"), [([TOKEN, TOKEN], 1), ([TOKEN], 1)])
def test_a_closing_chunk_without_text_is_no_token(tokens: list[bytes], noted: int) -> None:
    """But where a token would be missing without it, as when its text is still to come."""
    closing = b'{"choices": [{"text": "", "finish_reason": "length"}]}'
    found = read(chunks(*tokens, closing, USAGE, b"[DONE]"))
    assert (found.error, len(found.itl)) == ("", noted)
    assert found.e2e == pytest.approx(0.1 * (1 + noted))


def test_a_timeout_hurts_nobody_else(truth: Start) -> None:
    """The first answer takes too long; the requests behind it, on a connection of their own, are whole."""
    url = truth("--ttft", 5, "--gap", 1, "--fault", "slow", "--faults", 1, "--slow-by", 3000).url
    found = measure(
        Settings(url, prompt_tokens=8, output_tokens=4, requests=6, warmup=0, timeout=0.5, failures=1.0)
    )["results"]
    assert found["errors"] == {"timeout": 1}


def test_the_timeout_covers_connecting() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        began = time.monotonic()
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        done = completed(
            command("bench", url, "--model", "m", "--timeout", 1, "--warmup", 0, "--requests", 1)
        )
        for other in others:
            other.close()
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - began < 10


def test_an_open_loop_sends_nothing_early(truth: Start) -> None:
    url = truth("--ttft", 5, "--gap", 1).url
    found = measure(
        Settings(url, prompt_tokens=8, output_tokens=2, requests=200, warmup=0, rate=300.0, lag=1.0)
    )
    assert found["results"]["send_delay"]["min"] >= 0.0


def test_processes_add_up(truth: Start) -> None:
    """No more at a time than asked, evenly, and all on one clock."""
    url = truth("--ttft", 20, "--gap", 1).url
    about: dict[str, Any] = {"prompt_tokens": 8, "output_tokens": 2, "warmup": 0, "lag": 1.0}
    closed = measure(Settings(url, requests=12, concurrency=2, processes=4, **about))
    assert most_at_once(closed["requests"]) <= 2
    steady = measure(Settings(url, requests=40, rate=100.0, poisson=False, processes=4, **about))
    starts = sorted(row["start"] for row in steady["requests"])
    assert [b - a for a, b in zip(starts, starts[1:], strict=False)] == pytest.approx([10.0] * 39, abs=0.5)


def most_at_once(rows: list[dict[str, Any]]) -> int:
    return max(
        sum(bool(other["start"] <= row["start"] < other["start"] + other["e2e"]) for other in rows)
        for row in rows
    )


def measured_while_stopped(url: str, out: Path, stop_ms: int, every_s: float) -> dict[str, Any]:
    """The results of a client that is stopped for so long now and then."""
    process = subprocess.Popen(
        command(
            "bench",
            url,
            "--prompt-tokens",
            20,
            "--output-tokens",
            40,
            "--requests",
            100,
            "--concurrency",
            8,
            "--warmup",
            8,
            "-o",
            out,
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def stop() -> None:
        while stop_ms and process.poll() is None:
            time.sleep(every_s)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(stop_ms / 1e3)
                os.kill(process.pid, signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    process.communicate(timeout=120)
    thread.join()
    found: dict[str, Any] = json.loads(out.read_text())["results"]
    return found


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("stop_ms", "every_s"), [(40, 0.5), (60, 0.7), (100, 1.5)])
def test_a_client_that_is_stopped_now_and_then_says_so(
    truth: Start, tmp_path: Path, stop_ms: int, every_s: float
) -> None:
    found = measured_while_stopped(
        truth("--ttft", 30, "--gap", 10).url, tmp_path / "r.json", stop_ms, every_s
    )
    assert any("the client was late" in why for why in found["doubtful_because"]), found["loop_lag"]


@pytest.mark.slow
@pytest.mark.alone
def test_a_client_that_is_not_stopped_has_no_doubts(truth: Start, tmp_path: Path) -> None:
    """As soon as the machine itself is left in peace: a hypervisor may stop it, too."""
    url, seen = truth("--ttft", 30, "--gap", 10).url, []
    for _ in range(8):
        found = measured_while_stopped(url, tmp_path / "r.json", 0, 1.0)
        if not any("the client was late" in why for why in found["doubtful_because"]):
            return
        seen.append((found["doubtful_because"], found["loop_lag"]))
    pytest.fail(f"late in 8 of 8 runs: {seen}")

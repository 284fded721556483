"""Results of other clients, as they have written them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from taskrunner.inference.results import importers
from taskrunner.inference.results.schema import SCHEMA
from tests.helpers import Process

SAMPLES = Path(__file__).parent / "samples"


def test_a_result_of_vllm_bench_serve(cli: Callable[..., Process], tmp_path: Path) -> None:
    """As `vllm bench serve` 0.32 has written it of a server with 20 ms and 5 ms."""
    out = tmp_path / "r.json"
    assert cli("bench", "import", SAMPLES / "vllm-bench-serve.json", "-o", out).returncode == 0
    found = json.loads(out.read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    theirs = json.loads((SAMPLES / "vllm-bench-serve.json").read_text())
    for ours, name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl")):
        assert found["results"][ours]["mean"] == pytest.approx(theirs[f"mean_{name}_ms"], rel=1e-6)
        assert found["results"][ours]["p50"] == pytest.approx(theirs[f"median_{name}_ms"], rel=1e-6)
    assert found["results"]["throughput_tps"] == pytest.approx(theirs["output_throughput"])


def test_a_server_that_merges_tokens_breaks_nothing() -> None:
    """As vLLM 0.26 did on an H100: 63 chunks for 64 tokens, now and then in less time than others."""
    found = importers.read(SAMPLES / "vllm-bench-serve-merged.json")["results"]
    assert (found["completed"], found["failed"]) == (20, 0)


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
    assert results["tpot"]["p50"] == pytest.approx(10, abs=0.3)
    assert results["ttft"]["p50"] == pytest.approx(53, abs=6)
    assert results["e2e_latency"]["p50"] == pytest.approx(242, abs=6)
    assert found["metadata"]["concurrency"] == 4
    assert found["metadata"]["notes"]
    lasted = found["metadata"]["ended"] - found["metadata"]["began"]
    assert results["duration_ms"] == pytest.approx(lasted * 1e3, abs=10)


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("{}", "not a result of vllm bench serve")])
def test_what_cannot_be_imported(cli: Callable[..., Process], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x").write_text(text)
    done = cli("bench", "import", tmp_path / "x")
    assert (done.returncode, said in done.stderr) == (2, True)

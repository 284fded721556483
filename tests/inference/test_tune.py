"""Settings of a fabric, tried on real transfers by NIXL between two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import taskrunner
from tests.helpers import completed

INFERENCE = Path(taskrunner.__file__).parent / "inference"


@pytest.mark.slow
def test_settings_are_tried_and_the_best_is_told(vllm_env: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "tune.json"
    words = f". ./env.sh; venv/bin/python {INFERENCE} tune --fabric cpu --model models/tiny --repeats 3"
    done = completed(
        ["bash", "-c", f"{words} --prompt-tokens 1024,256 -o '{out}'"], cwd=vllm_env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    rows = {row["name"]: row for row in found["variants"]}
    assert all(set(row["transfer_ms"]) == {"256", "1024"} for row in rows.values() if "error" not in row)
    for tokens in ("256", "1024"):
        best = found["best"][tokens]
        least = min(row["transfer_ms"][tokens] for row in rows.values() if "error" not in row)
        assert rows[best["name"]]["transfer_ms"][tokens] == least
        assert best["gain"] == pytest.approx(rows["as it is"]["transfer_ms"][tokens] / least, rel=0.01)
        assert f"best for {tokens} tokens: {best['name']}" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fabric", "nope", "--model", "m"], "expected one of"),
        (["--fabric", "cpu", "--model", "/nowhere"], "cannot read config.json"),
        (["--model", "m", "--prompt-tokens", "1,x"], "expected a whole number"),
        (["--model", "m", "--gpus", "0"], "expected two GPUs"),
    ],
)
def test_what_cannot_be_tried_is_told(cli, words: list[str], said: str) -> None:  # type: ignore[no-untyped-def]
    done = cli("tune", *words)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False)

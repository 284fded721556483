"""Sweeps: what one of a thousand patterns costs, and the real pair's beside vLLM's own `bench sweep serve`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.experiments.conftest import Bed
from tests.helpers import started_with
from tests.sshd import free_port

SIZES = (100, 300, 1000)
ENV_DIR = Path(__file__).parent.parent / ".cache" / "vllm-env"
LENGTHS, STREAMS = [120, 240], [1, 4]
COMMAND = [sys.executable, "-m", "taskrunner", "experiment"]


def large(folder: Path) -> None:
    """Sweeps of 100, 300 and 1,000 patterns whose servers compute nothing: memory, status, resume."""
    print(
        "| patterns | a pattern, ms | resume of a sweep that is done, s | status, s | MB: controller | engine |"
    )
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        place = folder / str(size)
        place.mkdir()
        bed = Bed(place)
        env = {**os.environ, "TASKRUNNER_HOME": str(place / "state")}
        (place / "large.json").write_text(json.dumps(_plan(size)))
        words = ["large", "run", "-q", *bed.words]
        took, controller, engine = _run(words, place, env)
        again, *_ = _run(words, place, env)
        status, *_ = _run(["large", "status", "--json", *bed.words], place, env)
        print(f"| {size} | {took / size * 1e3:.0f} | {again:.1f} | {status:.2f} | {controller} | {engine} |")
    print("| target | | linear | under 0.3 | under 200 | under 60 |\n")


def _plan(size: int) -> dict[str, Any]:
    values = {"prompt_tokens": list(range(16, 16 + size // 2)), "concurrency": [1, 2]}
    return {
        "phase": "large",
        "infrastructure": {"model": "m"},
        "common_settings": {"max_tokens": 2, "warmup_iterations": 0, "measurement_iterations": 2},
        "layers": [{"id": "U", "mode": "unified", "matrix": {"values": values}}],
    }


def _run(
    words: Sequence[str], folder: Path, env: dict[str, str], accepted: Sequence[int] = (0,)
) -> tuple[float, int, int]:
    """Seconds, and the most MB that the command and the engine had. Raises SystemExit for an exit status that
    is not accepted.
    """
    peaks = {"engine": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for pid, line in started_with(env["TASKRUNNER_HOME"]).items():
                if "engine.main" in line:
                    peaks["engine"] = max(peaks["engine"], _peak_mb(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    done = subprocess.Popen(
        [*COMMAND, *words], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, status, usage = os.wait4(done.pid, 0)
    done.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    over.set()
    watcher.join()
    if done.returncode not in accepted:
        raise SystemExit(f"{words} failed: {done.stderr.read().decode()[-2000:] if done.stderr else ''}")
    return took, usage.ru_maxrss // 1024, peaks["engine"]


def _peak_mb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def on_cpu(
    folder: Path, plan: dict[str, Any], port: int, accepted: Sequence[int] = (0,)
) -> tuple[float, Path]:
    """Run a plan with the tiny model on this machine's CPU: seconds, and the folder of the results."""
    if not (ENV_DIR / "venv" / "bin" / "vllm").exists():
        raise SystemExit(f"{ENV_DIR}: run `taskrunner setup-environment --env ENV_DIR={ENV_DIR}` before")
    name = plan["phase"]
    (folder / f"{name}.json").write_text(json.dumps({**plan, "infrastructure": {"model": "", "tp_size": 1}}))
    results = ENV_DIR / "results" / name
    shutil.rmtree(results, ignore_errors=True)
    values = {"ENV_DIR": ENV_DIR, "MAX_LAG": 50, "PREFILL_PORT": port}
    words = [name, "run", "-q", *(f"--env={name}={value}" for name, value in values.items())]
    took, *_ = _run(words, folder, {**os.environ, "TASKRUNNER_HOME": str(folder / "state")}, accepted)
    return took, results


def beside_vllm(folder: Path) -> None:
    """Four patterns of one server by a plan and by `vllm bench sweep serve`, with the same command of vLLM."""
    plan = _plan(4)
    plan["common_settings"] |= {"max_tokens": 16, "warmup_iterations": 10, "measurement_iterations": 30}
    plan["layers"][0]["matrix"] = {"values": {"prompt_tokens": LENGTHS, "concurrency": STREAMS}}
    port = free_port()
    ours, results = on_cpu(folder, plan, port)
    records = [json.loads(path.read_text()) for path in results.glob("*/1/result.json")]
    measured = sum(record["results"]["duration_ms"] for record in records) / 1e3
    (server,) = records[0]["metadata"]["servers"].values()
    theirs = _vllm_sweep(folder, ENV_DIR, server, port)
    print("| four patterns of one server | s | ours / theirs | target |\n|---|---|---|---|")
    print(f"| taskrunner experiment | {ours:.1f} | {ours / theirs:.2f} | at most 0.6 |")
    print(f"| vllm bench sweep serve, to its last result | {theirs:.1f} | | |")
    print(f"| of ours, requests measured | {measured:.1f} | | |\n")


def _vllm_sweep(folder: Path, env_dir: Path, server: dict[str, Any], port: int) -> float:
    """Seconds until the last result is there: after it the command wants pandas, which vLLM does not bring."""
    vllm = str(env_dir / "venv" / "bin" / "vllm")
    params = [
        {"random_input_len": length, "max_concurrency": streams} for length in LENGTHS for streams in STREAMS
    ]
    (folder / "params.json").write_text(json.dumps(params))
    model = next(word for word in server["argv"] if "models/" in word)
    bench = [vllm, "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}"]
    bench += ["--model", model, "--tokenizer", str(env_dir / model), "--dataset-name", "random"]
    bench += ["--random-output-len", "16", "--num-prompts", "30", "--ignore-eos"]
    words = [vllm, "bench", "sweep", "serve", "--serve-cmd", shlex.join(server["argv"])]
    words += [
        "--bench-cmd",
        shlex.join(bench),
        "--bench-params",
        str(folder / "params.json"),
        "--num-runs",
        "1",
    ]
    words += [
        "--warmup-num-prompts",
        "10",
        "--after-bench-cmd",
        "true",
        "-o",
        str(folder / "theirs"),
        "-e",
        "x",
    ]
    env = {**os.environ, **server["env"]}
    log = folder / "theirs.log"
    began = time.time()
    with log.open("wb") as output:
        # The environment tells vLLM which distribution it is of.
        shell = ["bash", "-c", '. ./env.sh && exec "$@"', "bash", *words]
        subprocess.run(shell, cwd=env_dir, env=env, stdout=output, stderr=output, check=False)
    results = list((folder / "theirs").rglob("run=*.json"))
    if len(results) < len(params):
        raise SystemExit(
            f"vllm bench sweep serve: {len(results)} of {len(params)} results\n{log.read_text()[-3000:]}"
        )
    return max(path.stat().st_mtime for path in results) - began

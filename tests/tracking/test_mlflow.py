"""Results in a real MLflow server on loopback, and through sagemaker-mlflow to one that checks signatures."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from taskrunner.errors import UsageError
from taskrunner.tracking import spool, store
from taskrunner.tracking.record import record_of
from tests.aws.front import KEY, SECRET
from tests.helpers import WHOLE, Process, command, completed
from tests.relay import Relay
from tests.sshd import free_port
from tests.tracking.mlflow_server import Server
from tests.tracking.sagemaker import ARN, Signed

Cli = Callable[..., Process]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("mlflow"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def server(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.delenv("MLFLOW_TRACKING_ARN", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.url)
    if shared.process is None:
        shared.start()
    return shared


@pytest.fixture
def result(tmp_path: Path) -> Callable[..., Path]:
    """Write a result."""

    def result(number: int = 0, **metadata: Any) -> Path:
        values = {
            "n": 30,
            "unit": "ms",
            "mean": 50.0,
            "p50": 49.0,
            "p95": 60.0,
            "p99": 70.0,
            "p95_interval": "n too small",
            "p99_interval": "n too small",
            "p50_interval": [40.0, 50.0],
        }
        about = {
            "model": "m",
            "mode": "disaggregated",
            "prompt_tokens": 1024,
            "max_tokens": 128,
            "concurrency": 4,
            "warmup": 10,
            "iterations": 30,
            "prefix_cache": False,
            "hostnames": ["a"],
            "backend": "efa",
            "layer": "L2-EFA",
            "began": 1_700_000_000.0 + number,
            "ended": 1_700_000_060.0,
            **metadata,
        }
        results = {
            "ttft": values,
            "tpot": values,
            "itl": values,
            "e2e_latency": values,
            "duration_ms": 60000.0,
            "throughput_rps": 0.5,
            "throughput_tps": 100.0,
            "completed": 30,
            "failed": 0,
            "errors": {},
            "kv_transfer": {"bytes": 1000.0, "servers": {}},
            "valid": True,
            "invalid_because": [],
        }
        path = tmp_path / f"r{number}.json"
        path.write_text(json.dumps({"version": 2, "metadata": about, "results": results}))
        return path

    return result


def test_a_result_is_logged_once_with_all_that_it_has(
    server: Server, result: Any, cli: Cli, home: Path
) -> None:
    log = home.parent / "server log.txt"
    log.write_text("KV Transfer metrics")
    for _ in range(2):
        done = cli("mlflow", "log", result(), "--experiment", "once", "--artifact", log)
        assert done.returncode == 0, done.stderr
    (run,) = server.runs("once")
    assert run.info.run_name == "efa-1024-c4-20231114-221320"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ttft_p50"] == 49.0
    assert "ttft_p99" not in run.data.metrics  # 30 samples say nothing of it
    assert run.data.metrics["kv_bytes"] == 1000
    assert (run.data.params["concurrency"], run.data.tags["layer"], run.data.tags["valid"]) == (
        "4",
        "L2-EFA",
        "true",
    )
    from mlflow import MlflowClient

    files = MlflowClient(tracking_uri=server.url).list_artifacts(run.info.run_id)
    assert sorted(file.path for file in files) == ["result.json", "server log.txt"]


def test_without_a_server_it_goes_to_this_machine(
    result: Any, cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "run " in cli("mlflow", "log", result()).stdout
    assert (home / "tracking" / "mlflow.db").exists()
    (file,) = (home / "tracking" / "artifacts").rglob("result.json")
    assert json.loads(file.read_text())["version"] == 2


def test_a_server_that_is_away_loses_nothing(server: Server, result: Any, cli: Cli, home: Path) -> None:
    server.stop()
    for number in range(2):
        done = cli("mlflow", "log", result(number), "--experiment", "away")
        assert done.returncode == 0
        assert "kept here, not sent" in done.stderr
        assert "Traceback" not in done.stderr
    assert cli("mlflow", "sync").returncode == 3
    server.start()
    assert server.runs("away") == []
    done = cli("mlflow", "sync")
    assert done.returncode == 0, done.stderr
    assert cli("mlflow", "sync").stderr == "nothing is waiting to be sent\n"
    assert len(server.runs("away")) == 2


def test_a_server_that_is_slow_or_says_nothing(
    server: Server, result: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever, and what was cut off in the middle is there once in the end."""
    relay = Relay(server.port, delay=0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{relay.port}")
    try:
        assert "run " in cli("mlflow", "log", result(), "--experiment", "slow").stdout
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        threading.Timer(3.5, setattr, [relay, "swallow", True]).start()
        for number in (1, 2):
            done = cli("mlflow", "log", result(number), "--experiment", "slow")
            assert done.returncode == 0
        assert "kept here, not sent" in done.stderr
        relay.swallow, relay.delay = False, 0.0
        assert cli("mlflow", "sync").returncode == 0
    finally:
        relay.close()
    assert len(server.runs("slow")) == 3


FORKS = """
import os, signal, sys, time
from taskrunner.cli.main import command
import mlflow.tracking, mlflow.store.tracking.rest_store
for line in sys.stdin:
    seconds, path = line.rstrip().split(" ", 1)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["taskrunner", "mlflow", "log", path, "--experiment", "killed"]
        try:
            command()
        finally:
            os._exit(0)
    end = time.monotonic() + float(seconds)
    while not (ended := os.waitpid(child, os.WNOHANG)[0]) and time.monotonic() < end:
        time.sleep(0.005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print("ended" if ended else "killed", flush=True)
"""
"""Logs the result of each line and kills who does after so many seconds; what takes long to import is there."""


@pytest.mark.survival
def test_who_is_killed_loses_nothing_and_logs_nothing_twice(server: Server, result: Any, home: Path) -> None:
    chance = random.Random(3)
    kills = number = 0
    with subprocess.Popen(
        [sys.executable, "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as forks:
        assert forks.stdin is not None
        assert forks.stdout is not None
        while kills < (50 if WHOLE else 20):
            path = result(number)
            spool.spool(path, server.url, "killed")
            forks.stdin.write(f"{chance.uniform(0.01, 1.0)} {path}\n")
            forks.stdin.flush()
            if forks.stdout.readline() == "killed\n":
                kills += 1
                number += chance.random() < 0.3
            else:
                number += 1
    done = completed(command("mlflow", "sync"))
    assert done.returncode == 0, done.stderr
    runs = server.runs("killed")
    assert len(runs) == len({run.data.tags[spool.KEY] for run in runs})
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) in (number, number + 1)
    assert all(run.data.metrics["ttft_mean"] == 50.0 for run in runs)


def test_a_kill_while_a_sent_result_is_removed_leaves_nothing_pending(
    server: Server, result: Any, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.spool(result(), server.url, "half")
    pending = home / "tracking" / "pending"

    def killed() -> None:
        for place in pending.glob(f"*{spool.SENT}.*"):
            shutil.rmtree(place / "files")
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(spool, "_remove_sent", killed)
        with pytest.raises(KeyboardInterrupt):
            spool.sync()
    assert spool.pending() == []
    done = cli("mlflow", "sync")
    assert (done.returncode, done.stderr) == (0, "nothing is waiting to be sent\n")
    assert list(pending.iterdir()) == []
    assert len(server.runs("half")) == 1


def test_who_has_to_wait_says_so(result: Any, home: Path) -> None:
    store.ready()
    with spool.alone():
        logging = subprocess.Popen(command("mlflow", "log", result()), stderr=subprocess.PIPE, text=True)
        assert logging.stderr
        assert "waiting for it" in logging.stderr.readline()
    assert logging.wait(60) == 0
    logging.stderr.close()


def test_the_eight_steps(server: Server, cli: Cli) -> None:
    done = cli("mlflow", "test", "--to", server.url)
    assert done.returncode == 0
    assert done.stdout.count("✓") == 8
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    failed = cli("mlflow", "test", "--to", nobody, "--json")
    assert failed.returncode == 1
    steps = [json.loads(line) for line in failed.stdout.splitlines()]
    assert [step["ok"] for step in steps] == [True, False]


def test_through_sagemaker_mlflow_with_an_arn(
    server: Server, result: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handler = type("Handler", (Signed,), {"behind": server.port, "refused": [], "seen": set()})
    front = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=front.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    for name, value in {
        "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": f"http://127.0.0.1:{front.server_address[1]}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "MLFLOW_TRACKING_ARN": ARN,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    # SageMaker's servers give out where artifacts go, and take none themselves.
    MlflowClient(tracking_uri=server.url).create_experiment("arn", f"file://{tmp_path}/artifacts")
    try:
        done = cli("mlflow", "log", result(), "--experiment", "arn")
        assert "run " in done.stdout, done.stderr + str(handler.refused)  # type: ignore[attr-defined]
        assert len(server.runs("arn")) == 1
        assert handler.seen == {f"{KEY} us-east-1 sagemaker-mlflow"}  # type: ignore[attr-defined]
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        refused = cli("mlflow", "log", result(1), "--experiment", "arn")
        assert "kept here, not sent" in refused.stderr
        assert len(server.runs("arn")) == 1
    finally:
        front.shutdown()
        front.server_close()
        thread.join()


@pytest.mark.parametrize("given", ["arn:aws:s3:::x", "here", "arn:aws:sagemaker:us-east-1:1:mlflow-app/x"])
def test_what_is_no_tracking_uri(given: str) -> None:
    with pytest.raises(UsageError, match="is no"):
        store.uri(given)


def test_what_is_no_result(tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "x.json"
    other.write_text('{"metadata": 3}')
    with pytest.raises(UsageError, match="not a measurement result"):
        record_of(other)
    done = cli("mlflow", "log", tmp_path / "none.json")
    assert (done.returncode, "No such file" in done.stderr) == (2, True)


def test_names_are_made_such_as_mlflow_takes(server: Server, result: Any, cli: Cli) -> None:
    done = cli("mlflow", "log", result(**{"gpu(type)": "H100", "note": "x" * 9000}), "--experiment", "names")
    assert "run " in done.stdout, done.stderr
    assert done.stderr == ""  # nor does a library say anything
    (run,) = server.runs("names")
    assert run.data.tags["gpu_type_"] == "H100"


def test_a_record_that_is_refused_holds_up_no_other(
    server: Server, result: Any, cli: Cli, home: Path
) -> None:
    from taskrunner.tracking import spool

    keys = [spool.spool(result(number), server.url, "mixed") for number in range(3)]
    pending = home / "tracking" / "pending"
    (pending / keys[0] / "about.json").write_text(json.dumps({"to": server.url, "experiment": "x" * 9000}))
    (pending / keys[1] / "files" / "result.json").write_text("{}")
    done = cli("mlflow", "sync")
    assert done.returncode == 3
    assert done.stderr.count("kept here, not sent") == 2
    assert len(server.runs("mixed")) == 1
    assert sorted(os.listdir(pending)) == sorted(keys[:2])


def test_where_a_result_goes_is_what_was_wished_last(
    server: Server, result: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    path = result()
    cli("mlflow", "log", path, "--to", f"http://127.0.0.1:{free_port()}", "--experiment", "first")
    done = cli("mlflow", "log", path, "--to", server.url, "--experiment", "second")
    assert "run " in done.stdout, done.stderr
    assert len(server.runs("second")) == 1
    assert not server.runs("first")


def test_no_password_is_told(server: Server, result: Any, cli: Cli) -> None:
    port = free_port()
    uri = f"http://svc:hunter2hunter2@127.0.0.1:{port}"
    for words in (("log", result(), "--to", uri), ("sync",), ("test", "--to", uri), ("url", "--to", uri)):
        done = cli("mlflow", *words)
        assert "hunter2" not in done.stdout + done.stderr, words
    assert done.stdout == f"http://127.0.0.1:{port}\n"

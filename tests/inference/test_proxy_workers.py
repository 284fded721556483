"""A proxy of several processes: who answers, and what survives when one of them ends."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers import wait_for
from tests.inference.conftest import START, Told, address, get
from tests.inference.raw import BODY, post, said, statuses

pytestmark = pytest.mark.parametrize("proxy", [3], indirect=True)
Start = Callable[..., Told]


def _clients(pid: int, port: int) -> int:
    """How many connections to a port a process has taken."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{line[9]}]" for line in lines if int(line[1].split(":")[1], 16) == port}
    held = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            held.add(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except OSError:
            continue  # closed meanwhile
    return len(ours & held)


def _port(at: Told) -> int:
    return int(at.url.rpartition(":")[2])


def test_connections_are_spread_evenly(behind: tuple[Told, Told, Told]) -> None:
    *_, at = behind
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(socket.create_connection(("127.0.0.1", _port(at))))
        wait_for(lambda: [_clients(pid, _port(at)) for pid in at.processes()[1:]] == [4, 4, 4])
    wait_for(lambda: [_clients(pid, _port(at)) for pid in at.processes()[1:]] == [0, 0, 0])


def test_each_worker_answers_with_the_metrics_of_all(behind: tuple[Told, Told, Told]) -> None:
    *_, at = behind
    for _ in range(6):
        assert statuses(said(at.url, post("/v1/completions"))) == [200]
    for _ in range(3):
        text = get(f"{at.url}/metrics")
        assert 'proxy_requests_total{stage="decode",status="200"} 6.0' in text
        assert "proxy_request_seconds_count 6.0" in text
        assert "proxy_running 0.0" in text


def test_a_worker_that_is_killed_is_replaced(truth: Start, proxy: Start) -> None:
    """What the other workers answer goes on, and the counts of what was before stay."""
    p, d = truth("--role", "prefill", "--ttft", 1), truth("--role", "decode", "--ttft", 4000)
    at = proxy("--prefill", p.url, "--decode", d.url)
    before = at.processes()

    def answered() -> bool:
        try:
            return " w" in get(f"{at.url}/v1/completions", BODY)
        except OSError:
            return False

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(answered) for _ in range(3)]
        wait_for(lambda: "proxy_running 3.0" in get(f"{at.url}/metrics"))
        time.sleep(1.1)  # a worker that ends in its first second is not replaced
        os.kill(before[2], signal.SIGKILL)
        whole = sum(answer.result() for answer in asked)
    assert whole >= 2  # it may have had none
    wait_for(lambda: len(at.processes()) == 4 and before[2] not in at.processes())
    assert all(statuses(said(at.url, post("/tokenize"))) == [200] for _ in range(6))
    counted = f'proxy_requests_total{{stage="decode",status="200"}} {whole + 6}.0'
    assert counted in get(f"{at.url}/metrics")
    assert "proxy_running 0.0" in get(f"{at.url}/metrics")


def test_nothing_is_left_when_the_accepting_process_is_killed(
    truth: Start, proxy: Start, tmp_path: Path
) -> None:
    line = [*START, "proxy", "--port", "0", "--workers", "3", "--decode", truth().url]
    said, values = tmp_path / "said", tmp_path / "values"
    values.mkdir()
    with said.open("w") as errors:
        process = subprocess.Popen(line, stderr=errors, text=True, env={**os.environ, "TMPDIR": str(values)})
    at = Told(address(said), process)
    pids = at.processes()
    assert len(pids) == 4
    assert list(values.iterdir())
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert not list(values.iterdir())
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", _port(at)))


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--decode", "ftp://x"], 2, "ftp://x"),
        (["--decode", "http://x", "--log", "/no/such/folder/log"], 2, "/no/such/folder/log"),
        (["--decode", "http://x", "--port", "{taken}"], 3, "ddress already in use"),
        (["--decode", "http://x", "--host", "no such host"], 3, "no such host"),
    ],
)
def test_what_cannot_start_is_told_once(
    behind: tuple[Told, Told, Told], tmp_path: Path, options: list[str], status: int, text: str
) -> None:
    *_, at = behind
    values = tmp_path / "values"
    values.mkdir()
    given = [word.format(taken=_port(at)) for word in options]
    done = subprocess.run(
        [*START, "proxy", "--workers", "3", *given],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "TMPDIR": str(values)},
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
    assert text in done.stderr
    assert not list(values.iterdir())


def test_bodies_of_all_workers_have_one_limit(truth: Start, proxy: Start) -> None:
    at = proxy("--decode", truth().url, "--max-buffered", 1_000_000)
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", _port(at)))) for _ in range(3)]
        for client in clients:
            client.sendall(head + b" " * 400_000)
            time.sleep(0.3)
        clients[2].settimeout(5)
        assert clients[2].recv(100).startswith(b"HTTP/1.1 503")


def test_a_disk_without_room_for_the_metrics_is_one_line(proxy: Start, tmp_path: Path) -> None:
    """What is mapped has its space before: writing there would kill a worker in the middle of its requests."""
    inside = f"mount -t tmpfs -o size=2m none {tmp_path} && exec env TMPDIR={tmp_path} {shlex.join(START)}"
    line = ["unshare", "-rm", "sh", "-c", f"{inside} proxy --port 0 --workers 3 --decode http://x"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "No space left on device" in done.stderr
    assert str(tmp_path) in done.stderr

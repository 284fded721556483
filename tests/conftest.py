"""What the tests share: a state folder of their own, task files, and the command as a process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadgroup import LoadGroupScheduling

from taskrunner.engine.run import ports
from tests.helpers import CACHE, Process, command, completed, end_what_is_left, runner_command, started

MARK, TURNS = "TASKRUNNER_TESTS", "TASKRUNNER_TESTS_TURNS"
"""Environment variables of all that the tests start: which session it belongs to, and the folder with the
locks by which workers take turns.
"""
BEFORE = pytest.StashKey[set[int]]()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers have the environment of the process that starts them
        os.environ[MARK], os.environ[TURNS] = uuid.uuid4().hex, tempfile.mkdtemp()
        # Thousands of processes look for `python3`: a version manager's script takes ten times as long.
        python = Path(sys.executable).resolve().parent
        os.environ["PATH"] = os.pathsep.join((str(python), os.environ["PATH"]))
        config.stash[BEFORE] = set(processes_of(f"{MARK}={os.environ[MARK]}"))


LONGEST = (
    "test_ssm_survival.py",
    "test_survival.py",
    "test_ssm.py",
    "test_pair.py",
    "test_ssm_faults.py",
    "test_mlflow.py",
    "test_sweep.py",
    "test_two_nodes.py",
    "test_exactly_once.py",
    "test_slurm.py",
    "test_page.py",
    "test_ssh_survival.py",
    "test_survival_trial.py",
    "test_verdicts.py",
    "test_ssh.py",
    "test_ssm_machine.py",
)
"""Files that take minutes: begun last, they would keep one worker busy when the others have nothing left.
Those that wait most of the time are between those that do not.
"""
ALONE = "alone"
"""The marker of tests that measure times, and the group in which a worker gets them."""


class Scheduling(LoadGroupScheduling):  # type: ignore[misc]
    """Gives a worker the tests of a file, in the order of the collection, or those that run alone."""

    def _split_scope(self, nodeid: str) -> str:
        return str(super()._split_scope(nodeid)).partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """Most tests wait for something most of the time; with more, those with deadlines miss them."""
    return 2 + len(os.sched_getaffinity(0))


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker(ALONE):
        item.add_marker(pytest.mark.xdist_group(ALONE))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that run alone come last: they wait for the others' current tests, and the others for them."""
    order = {name: number for number, name in enumerate(LONGEST)}
    last = len(order) + 1
    items.sort(
        key=lambda item: last if item.get_closest_marker(ALONE) else order.get(item.path.name, last - 1)
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests that run alone would keep the workers waiting for each other, were they among the others."""
    if hasattr(session.config, "workerinput"):
        alone = {item.nodeid for item in session.items if item.get_closest_marker(ALONE)}
        assert all(name.endswith(f"@{ALONE}") for name in alone), "pytest-xdist makes no groups"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests run beside those of other workers, but those that measure times."""
    how = fcntl.LOCK_EX if item.get_closest_marker(ALONE) else fcntl.LOCK_SH
    turns = Path(os.environ[TURNS])
    with (turns / "next").open("w") as queue, (turns / "now").open("w") as room:
        fcntl.flock(queue, how)  # who waits to be alone lets nobody pass
        fcntl.flock(room, how)
        fcntl.flock(queue, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a forked process may have it open, too


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """At the end nothing runs that was started since the beginning, and holds a port or not."""
    if hasattr(session.config, "workerinput"):
        return
    shutil.rmtree(os.environ[TURNS])
    before, mark = session.config.stash[BEFORE], f"{MARK}={os.environ[MARK]}"
    deadline = time.monotonic() + 10
    while left := {pid: line for pid, line in processes_of(mark).items() if pid not in before}:
        if time.monotonic() > deadline:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            for pid, line in left.items():
                print(f"\nleft running: {pid} {line!r}, listening on {sorted(ports.listening({pid}))}")
            break
        time.sleep(0.1)


def processes_of(mark: str) -> dict[int, str]:
    """The living processes with this in their environment, or, as some write over that, with a folder of ours."""
    found = started(mark)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if Path(os.readlink(f"/proc/{name}/cwd")).is_relative_to(CACHE):
                    found[int(name)] = Path(f"/proc/{name}/cmdline").read_text()
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder; nothing that was started with it may be left when the test is over."""
    folder = tmp_path / "state"
    monkeypatch.setenv("TASKRUNNER_HOME", str(folder))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield folder
    left = end_what_is_left(str(folder))
    assert not left, f"left running: {left}"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a task file: the tasks, and what else the file has."""

    def write(*tasks: dict[str, Any], file: str = "work/tasks.json", **members: Any) -> Path:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": "Test", **members, "tasks": tasks}, indent=2))
        return path

    return write


@pytest.fixture
def runner() -> Callable[..., Process]:
    """Run `runner` to its end."""

    def runner(*args: object) -> Process:
        line = runner_command(*args)
        return completed(line, timeout=90, stdin=subprocess.DEVNULL)

    return runner


@pytest.fixture
def cli() -> Callable[..., Process]:
    """Run the command to its end."""

    def cli(*args: object, **kwargs: Any) -> Process:
        kwargs = {"timeout": 60, "capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **kwargs}
        return subprocess.run(command(*args), **kwargs)

    return cli


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for the one who connects, with a key; returns the key."""
    from tests.sshd import keygen

    folder = tmp_path / "home" / ".ssh"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return keygen(folder / "id_ed25519")


@pytest.fixture
def make_sshd(tmp_path: Path, identity: Path) -> Iterator[Callable[..., Any]]:
    """Start servers that take the key, and whose keys are known."""
    from tests.sshd import Sshd

    made: list[Sshd] = []

    def make(*options: str, **more: Any) -> Sshd:
        server = Sshd(tmp_path / f"sshd{len(made)}", *options, **more)
        made.append(server)
        server.authorize(identity)
        server.start()
        with (identity.parent / "known_hosts").open("a") as known:
            known.write(server.known_as())
        return server

    yield make
    left: dict[int, str] = {}
    for server in made:
        server.stop()
        left.update(end_what_is_left(str(server.state)))
    assert not left, f"left running on a node: {left}"


@pytest.fixture
def sshd(make_sshd: Callable[..., Any]) -> Any:
    """A server; see tests/sshd.py."""
    return make_sshd()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Any]:
    """A terminal with a shell in it, as tests/terminal.py describes."""
    from tests.terminal import Terminal

    opened = Terminal(tmp_path / "tmux")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def vllm_env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What setup-environment installs, once for all tests: it has 3 GB."""
    from taskrunner import run

    folder = CACHE / "vllm-env"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "vllm-env.lock").open("w") as lock, pytest.MonkeyPatch.context() as patched:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may need it, too
        patched.setenv("TASKRUNNER_HOME", str(tmp_path_factory.mktemp("setup")))
        assert run("setup-environment", env={"ENV_DIR": str(folder), "PROFILE": "cpu"}).status == "ok"
    return folder


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, int]]:
    """moto's server: S3, EC2, STS."""
    from tests import aws

    server = aws.moto()
    host, port = server.get_host_and_port()
    yield host, port
    server.stop()


@pytest.fixture
def cloud(tmp_path: Path, moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """AWS with one instance; see tests/aws."""
    import urllib.request

    from taskrunner.transports.ssm import dispatcher
    from tests.aws import Aws

    made = Aws(tmp_path / "aws", moto)
    for name, value in made.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TASKRUNNER_BUCKET", raising=False)
    monkeypatch.setattr(dispatcher, "_dispatchers", {})
    made.add()
    yield made
    left: dict[int, str] = {}
    for instance in made.ssm.instances.values():
        left.update(end_what_is_left(str(instance.state)))
        instance.power_off()
    made.close()
    urllib.request.urlopen(
        urllib.request.Request(f"http://{moto[0]}:{moto[1]}/moto-api/reset", method="POST"), timeout=10
    ).close()
    assert not left, f"left running on an instance: {left}"

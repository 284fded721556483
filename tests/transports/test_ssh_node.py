"""Nodes as they are: their Python, disk, clock, shells and accounts."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskrunner import run
from taskrunner.transports.ssh.transport import SshTransport
from tests.sshd import Sshd
from tests.transports.reaching import refused
from tests.transports.test_bundle import pythons

Write = Callable[..., Path]
MakeSshd = Callable[..., Sshd]


def test_no_python(sshd: Sshd) -> None:
    said, hint = refused(sshd.target, python="/no/such/python3")
    assert "there is no /no/such/python3 on the node" in said
    assert "install Python" in hint


def test_an_old_python(sshd: Sshd, tmp_path: Path) -> None:
    old = tmp_path / "old python"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 6); sys.version = \"3.6.8 x\"; exec(eval(sys.stdin.buffer.readline()))'\n"
    )
    old.chmod(0o755)
    assert "is 3.6.8; the engine needs 3.8 or later" in refused(sshd.target, python=str(old))[0]


def test_a_home_that_cannot_be_written(sshd: Sshd, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    said, hint = refused(sshd.target, state=str(blocked / "state"))
    assert "cannot use its state folder" in said
    assert "`state`" in hint


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small tmpfs with these options."""
    assert os.geteuid() == 0, "mounting needs root"
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(made)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(sshd: Sshd, mounted: Callable[[str], Path]) -> None:
    said, hint = refused(sshd.target, state=str(mounted("size=40k") / "state"))
    assert "No space left on device" in said
    assert "free up space" in hint


def test_a_state_folder_on_a_noexec_mount(sshd: Sshd, write: Write, mounted: Callable[[str], Path]) -> None:
    """Nothing is executed from there: the engine is read by Python, a step by bash."""
    path = write({"id": "a", "skip_if": "false", "commands": ["echo ran"]})
    transport = SshTransport(sshd.target, state=str(mounted("noexec") / "state"))
    assert run(path, on=transport).status == "ok"
    transport.close()


def test_a_login_shell_that_talks_and_a_banner(make_sshd: MakeSshd, write: Write, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("*** Authorized use only ***\n" * 50)
    server = make_sshd(f"Banner {tmp_path}/banner")
    (server.home / ".bashrc").write_text(
        "echo Welcome; printf 'no newline \\0 taskrunner-'; echo to stderr >&2; head -c 100000 /dev/zero\n"
    )
    path = write({"id": "a", "commands": ["echo ran"]})
    transport = SshTransport(server.target)
    done = run(path, on=transport)
    assert done.status == "ok"
    assert transport.read(done.run, "logs/001-a.log", 0) == b"ran\n"
    transport.close()


def test_a_login_shell_that_never_comes_to_the_point(sshd: Sshd) -> None:
    (sshd.home / ".bashrc").write_text("sleep 3\n")
    said, hint = refused(sshd.target, connect_timeout=1)
    assert "does not answer within 1 s of the login" in said
    assert "startup file" in hint


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_every_python_that_a_node_may_have(python: str, sshd: Sshd, write: Write) -> None:
    path = write({"id": "a", "commands": ["echo $((40 + 2))"]}, {"id": "b", "commands": ["exit 3"]})
    transport = SshTransport(sshd.target, python=python)
    done = run(path, on=transport)
    assert (done.ok, done.failed) == (1, 1)
    assert transport.read(done.run, "logs/001-a.log", 0) == b"42\n"
    transport.close()


@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_a_clock_that_is_a_day_off(offset: str, make_sshd: MakeSshd, write: Write, tmp_path: Path) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    home, state = tmp_path / "sshd0" / "node home", tmp_path / "sshd0" / "node-state"
    server = make_sshd(env=f'HOME="{home}" TASKRUNNER_HOME="{state}" LD_PRELOAD={library} FAKETIME={offset}')
    path = write({"id": "a", "commands": ["sleep 0.3; date +%s > now"]}, {"id": "b", "commands": ["true"]})
    times: list[float] = []
    transport = SshTransport(server.target)
    done = run(path, on=transport, on_event=lambda event: times.append(event["time"]))
    assert done.status == "ok"
    assert abs(abs(transport.skew) - 86400) < 10
    assert abs(int((server.home / "now").read_text()) - time.time()) > 80000
    # What is told of it is told in our time, and durations are not touched.
    assert all(abs(when - time.time()) < 30 for when in times)
    assert 0.3 <= done.duration < 10
    assert run(path, on=transport).skipped == 2
    transport.close()


@pytest.fixture
def account(tmp_path: Path, identity: Path) -> Iterator[Callable[..., Sshd]]:
    """A server, and a user of its own with this login shell, who may or may not sudo."""
    assert os.geteuid() == 0, "making users needs root"
    made: list[tuple[str, Sshd]] = []
    sudoers = Path("/etc/sudoers.d")

    def make(shell: str = "/bin/bash", sudo: bool = False) -> Sshd:
        name = f"trtest{os.getpid()}x{len(made)}"
        folder = Path("/tmp") / f"{name} files"
        folder.mkdir(mode=0o755)
        server = Sshd(folder / "sshd", env="LANG=C")
        home = folder / "elsewhere" / name
        home.parent.mkdir()
        subprocess.run(["useradd", "-m", "-d", str(home), "-s", shell, "-p", "*", name], check=True)
        made.append((name, server))
        if sudo:
            (sudoers / name).write_text(f"{name} ALL=(ALL) NOPASSWD: ALL\n")
        server.user, server.home = name, home
        server.state = home / ".local/state/taskrunner"
        server.authorize(identity)
        server.authorized.chmod(0o644)
        server.start()
        (identity.parent / "known_hosts").write_text(server.known_as())
        return server

    yield make
    for name, server in made:
        server.stop()
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)
        time.sleep(0.1)
        subprocess.run(["userdel", "-f", name], check=True, stderr=subprocess.DEVNULL)
        (sudoers / name).unlink(missing_ok=True)
        shutil.rmtree(server.folder.parent)


@pytest.mark.parametrize("shell", ["dash", "fish", "bash"])
def test_login_shells_and_another_home(shell: str, account: Callable[..., Sshd], write: Write) -> None:
    server = account(str(shutil.which(shell)))
    path = write({"id": "a", "commands": ["pwd; [[ -n $BASH_VERSION ]] && echo bash"]})
    transport = SshTransport(server.target)
    done = run(path, on=transport)
    assert transport.read(done.run, "logs/001-a.log", 0) == f"{server.home}\nbash\n".encode()
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700
    transport.close()


def test_run_as_with_and_without_sudo(account: Callable[..., Sshd], write: Write) -> None:
    path = write(
        {"id": "a", "run_as": "root", "commands": ["id -un; echo <<KEY>> | wc -c"]},
        variables={"KEY": {"secret": True, "default": "hunter2hunter2"}},
    )
    server = account(sudo=True)
    transport = SshTransport(server.target)
    done = run(path, on=transport)
    assert done.status == "ok"
    assert transport.read(done.run, "logs/001-a.log", 0) == b"root\n15\n"
    Path("/etc/sudoers.d", server.user).unlink()
    refused = run(path, on=transport, reset=True)
    assert refused.status == "failed"
    assert "a password is required" in "".join(refused.failures[0]["tail"])
    transport.close()


def test_cancelling_what_runs_as_another_user(account: Callable[..., Sshd], write: Write) -> None:
    from taskrunner import start

    server = account(sudo=True)
    path = write({"id": "a", "run_as": "root", "commands": ["echo $$; sleep 600 & sleep 600"]})
    with start(path, on=server.target) as begun:
        pid = 0
        for event in begun.events(output=True):
            if event["type"] == "output" and not pid:
                pid = int(event["text"])
                os.kill(pid, 0)
                begun.cancel()
        assert event["type"] == "run.finished"
        assert event["status"] == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    begun.transport.close()

"""Files that go to a node over a real sshd and come back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import StateError, TargetError, UsageError, run
from taskrunner.transports.ssh.transport import SshTransport
from tests.helpers import Process, wait_for
from tests.relay import Relay
from tests.sshd import Sshd

Write = Callable[..., Path]
Cli = Callable[..., Process]


def test_files_go_there_and_outputs_come_back(write: Write, sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "my files"
    (folder / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (
        folder / "deep" / "ü \udcff.bin".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    ).write_bytes(b"\0\xff")
    (folder / "run.sh").write_text("#!/bin/sh\necho from the script\n")
    (folder / "run.sh").chmod(0o755)
    path = write(
        {
            "id": "a",
            "files": [{"from": "my files", "to": "copied here"}, {"from": "my files/run.sh", "to": "bin/"}],
            "commands": [
                "bin/run.sh > result.txt; mkdir -p many/in; echo 1 > many/in/x; find 'copied here' | wc -l"
            ],
            "outputs": [{"from": "result.txt", "to": "results/"}, {"from": "many", "to": "results/all"}],
        }
    )
    result = run(path, on=sshd.target)
    assert result.status == "ok", result
    copied = sshd.home / "copied here"
    assert (copied / "empty").is_dir()
    assert [p.read_bytes() for p in (copied / "deep").iterdir()] == [b"\0\xff"]
    assert Path("results/result.txt").read_text() == "from the script\n"
    assert Path("results/all/in/x").read_text() == "1\n"
    # What an earlier run has brought back is fetched again where it was lost.
    os.unlink("results/result.txt")
    assert run(path, on=sshd.target).skipped == 1
    assert Path("results/result.txt").read_text() == "from the script\n"
    # Another content is another step.
    (folder / "run.sh").write_text("#!/bin/sh\necho changed\n")
    assert run(path, on=sshd.target).ok == 1
    assert Path("results/result.txt").read_text() == "changed\n"
    (folder / "run.sh").unlink()
    with pytest.raises(UsageError, match=r"step a: files: .*run\.sh: No such file"):
        run(path, on=sshd.target)


def test_put_and_get(sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    (folder / "sub").mkdir(parents=True)
    for number in range(50):
        (folder / "sub" / f"{number} x").write_bytes(os.urandom(1000 * number))
    transport = SshTransport(sshd.target)
    assert transport.put(folder, "there/it is") == 50
    assert transport.put(folder, "there/it is") == 0
    (folder / "sub" / "7 x").write_text("changed")
    assert transport.put(folder, "there/it is") == 1
    assert transport.get("there/it is", tmp_path / "back") == 50
    assert transport.get("there/it is", tmp_path / "back") == 0
    assert subprocess.run(["diff", "-r", folder, tmp_path / "back"], check=False).returncode == 0
    assert transport.put(folder / "sub" / "3 x", "into/") == 1
    assert (sshd.home / "into" / "3 x").stat().st_size == 3000
    with pytest.raises(Exception, match=r"nothing here.*No such file"):
        transport.get("nothing here", tmp_path / "x")
    with pytest.raises(UsageError, match="No such file"):
        transport.put(tmp_path / "nothing", "x")
    transport.close()


def test_a_put_that_was_cut_goes_on(sshd: Sshd, tmp_path: Path) -> None:
    relay = Relay(sshd.port)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(30_000_000))
    transport = SshTransport(sshd.target.replace(str(sshd.port), str(relay.port)))
    (tmp_path / "home/.ssh/known_hosts").write_text(sshd.known_as(f"[127.0.0.1]:{relay.port}"))
    transport.open()

    import threading

    threading.Timer(0.1, relay.cut).start()
    assert transport.put(big, "big") == 1
    assert (sshd.home / "big").read_bytes() == big.read_bytes()
    threading.Timer(0.1, relay.cut).start()
    transport.get("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert sorted(path.name for path in sshd.home.iterdir()) == ["big"]
    transport.close()
    relay.close()


def test_two_commands_that_send_the_same_big_file(write: Write, sshd: Sshd, tmp_path: Path) -> None:
    from tests.helpers import command

    (tmp_path / "work" / "big").write_bytes(os.urandom(40_000_000))
    paths = [
        write({"id": "a", "files": [{"from": "big", "to": "there/"}]}, file=f"work/{name}.json")
        for name in "ab"
    ]
    both = [subprocess.Popen(command(path, "--on", sshd.target), stdout=subprocess.DEVNULL) for path in paths]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (sshd.home / "there" / "big").read_bytes() == (tmp_path / "work" / "big").read_bytes()
    assert len(list((sshd.state / "files").iterdir())) == 1


def test_links_in_what_is_put(sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "x").write_text("x")
    (folder / "link").symlink_to("real")
    (folder / "real" / "loop").symlink_to("..")
    os.mkfifo(folder / "pipe")
    transport = SshTransport(sshd.target)
    transport.put(folder, "f")
    assert (sshd.home / "f" / "real" / "x").exists() or (sshd.home / "f" / "link" / "x").exists()
    (folder / "broken").symlink_to("nothing")
    with pytest.raises(UsageError, match="broken: No such file"):
        transport.put(folder, "f")
    transport.close()


def test_two_that_get_the_same_file(sshd: Sshd, tmp_path: Path) -> None:
    import threading

    (sshd.home / "big").write_bytes(os.urandom(50_000_000))
    counts = []

    def get() -> None:
        transport = SshTransport(sshd.target)
        counts.append(transport.get("big", tmp_path / "big"))
        transport.close()

    both = [threading.Thread(target=get) for _ in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(counts) == [0, 1]
    assert (tmp_path / "big").read_bytes() == (sshd.home / "big").read_bytes()


def test_a_file_that_changed_between_two_halves(sshd: Sshd, tmp_path: Path) -> None:
    relay = Relay(sshd.port)
    (tmp_path / "home/.ssh/known_hosts").write_text(sshd.known_as(f"[127.0.0.1]:{relay.port}"))
    (sshd.home / "big").write_bytes(os.urandom(1_000_000) * 300)
    first = SshTransport(sshd.target.replace(str(sshd.port), str(relay.port)), reconnect_timeout=0)
    first.open()
    import threading

    def cut() -> None:
        wait_for(lambda: any(path.stat().st_size for path in tmp_path.glob(".taskrunner-*")))
        relay.close()

    threading.Thread(target=cut).start()
    with pytest.raises(TargetError):
        first.get("big", tmp_path / "big")
    assert len(list(tmp_path.glob(".taskrunner-*"))) == 1
    first.close()
    (sshd.home / "big").write_bytes(os.urandom(1_000_000) * 300)
    second = SshTransport(sshd.target.replace(str(sshd.port), str(sshd.port)))
    (tmp_path / "home/.ssh/known_hosts").write_text(sshd.known_as())
    assert second.get("big", tmp_path / "big") == 1
    assert (tmp_path / "big").read_bytes() == (sshd.home / "big").read_bytes()
    second.close()


def test_a_node_cannot_write_elsewhere_here(sshd: Sshd, tmp_path: Path, write: Write) -> None:
    path = write({"id": "a", "commands": ["true"]})
    run(path, on=sshd.target)
    (folder,) = (sshd.state / "engine").iterdir()
    file_sync = folder / "engine" / "store" / "file_sync.py"
    file_sync.write_text(
        file_sync.read_text().replace(
            "    return entries\n\n\ndef _entry",
            "    entries[0]['name'] = '../../pwned'\n    return entries\n\n\ndef _entry",
        )
    )
    (sshd.home / "f").mkdir()
    (sshd.home / "f" / "x").write_text("x")
    transport = SshTransport(sshd.target)
    with pytest.raises(StateError, match="it lists a file outside of f"):
        transport.get("f", tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("pwned"))
    transport.close()


def test_special_files_are_not_replaced(sshd: Sshd, tmp_path: Path) -> None:
    (sshd.home / "x").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(sshd.home / "pipe")
    transport = SshTransport(sshd.target)
    with pytest.raises(StateError, match="not a file"):
        transport.get("x", tmp_path / "pipe")
    with pytest.raises(StateError, match="not a file"):
        transport.put(sshd.home / "x", "pipe")
    with pytest.raises(StateError, match="neither a file nor a folder"):
        transport.get("pipe", tmp_path / "y")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        transport.put(tmp_path / "pipe", "y")
    (tmp_path / "target").write_text("")
    (tmp_path / "link").symlink_to("target")
    transport.get("x", tmp_path / "link")
    assert (tmp_path / "target").read_text() == "x"
    assert (tmp_path / "link").is_symlink()
    transport.close()

"""What a run on a node survives: cut connections, killed controllers and servers, a node that is gone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import TargetError, run, start
from taskrunner.engine.store import paths
from taskrunner.transports.ssh.transport import SshTransport
from taskrunner.transports.stream import session
from tests.helpers import Process, command, completed, wait_for
from tests.relay import Relay
from tests.sshd import Sshd

Write = Callable[..., Path]
Cli = Callable[..., Process]


def through(relay: Relay, sshd: Sshd, **options: float) -> SshTransport:
    known = Path("~/.ssh/known_hosts").expanduser()
    known.write_text(sshd.known_as() + sshd.known_as(f"[127.0.0.1]:{relay.port}"))
    return SshTransport(f"ssh://{sshd.user}@127.0.0.1:{relay.port}", **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["session", "relay"])
def test_the_connection_cut_at_random_moments(how: str, write: Write, sshd: Sshd) -> None:
    """Fifty times each: all that was printed arrives once and in order, and each step runs once."""
    cuts = 50
    talk = 'echo {0} >> ledger; i=0; until [ -e stop ] && [ $i -ge 500 ]; do i=$((i+1)); echo "{0} line $i é"; [ $((i % 50)) ] && sleep 0.005; done'
    steps = [
        {"id": f"short{n}", "commands": [f"echo short{n} >> ledger; echo from short{n}; sleep 0.02"]}
        for n in range(20)
    ]
    path = write(
        *steps,
        {"id": "long", "commands": [talk.format("long")]},
        *[{**step, "id": f"{step['id']}b"} for step in steps],
    )
    relay = Relay(sshd.port)
    transport = through(relay, sshd)
    seen: dict[str, str] = {}
    finished: list[str] = []
    states: list[str] = []
    done = 0

    def cut() -> None:
        nonlocal done
        chance = random.Random(how)
        while done < cuts:
            time.sleep(chance.uniform(0.0, 0.6))
            if how == "session":
                done += sshd.cut() > 0
            else:
                relay.cut()
                done += 1
        (sshd.home / "stop").touch()

    with start(path, on=transport) as begun:
        cutter = threading.Thread(target=cut)
        cutter.start()
        for event in begun.events(output=True):
            if event["type"] == "output":
                seen[event["step"]] = seen.get(event["step"], "") + event["text"]
            elif event["type"] == "step.finished":
                finished.append(event["step"])
            elif event["type"] == "connection":
                states.append(event["state"])
        cutter.join()
    assert event["type"] == "run.finished"
    assert event["status"] == "ok"
    ids = [*(f"short{n}" for n in range(20)), "long", *(f"short{n}b" for n in range(20))]
    assert finished == ids
    assert states.count("lost") > cuts / 4
    assert states == ["lost", "back"] * (len(states) // 2)
    for index, name in enumerate(ids):
        there = (sshd.state / "runs" / begun.id / paths.log_path("", index, name)).read_bytes()
        assert hashlib.sha256(there).hexdigest() == hashlib.sha256(seen[name].encode()).hexdigest(), name
    assert (sshd.home / "ledger").read_text().split() == [name.removesuffix("b") for name in ids]
    transport.close()
    relay.close()


@pytest.mark.slow
def test_the_controller_killed_at_random_moments(write: Write, sshd: Sshd) -> None:
    chance = random.Random(1)
    for number in range(20):
        names = [f"s{index}" for index in range(5)]
        path = write(
            *({"id": name, "commands": [f"echo {name} >> ledger{number}; sleep 0.05"]} for name in names),
            file=f"work/{number}.json",
        )
        first = subprocess.Popen(command(path, "--on", sshd.target), stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1, 0.9))
        first.kill()
        first.wait()
        again = completed(command(path, "--on", sshd.target))
        assert again.returncode == 0, again.stderr
        assert (sshd.home / f"ledger{number}").read_text().split() == names


def test_the_same_command_attaches_after_a_kill_and_tells_the_true_result(
    write: Write, sshd: Sshd, cli: Cli
) -> None:
    path = write(
        {"id": "a", "commands": ["echo here; until [ -e go ]; do sleep 0.02; done; echo x >> out; exit 3"]}
    )
    first = subprocess.Popen(command(path, "--on", sshd.target, "-v"), stdout=subprocess.PIPE, text=True)
    assert first.stdout
    wait_for(lambda: "here" in (first.stdout.readline() if first.stdout else ""))
    first.kill()
    first.wait()
    first.stdout.close()
    second = subprocess.Popen(
        command(path, "--on", sshd.target, "-v"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert second.stdout
    wait_for(lambda: "here" in (second.stdout.readline() if second.stdout else ""))
    (sshd.home / "go").touch()
    out, err = second.communicate(timeout=20)
    assert second.returncode == 1
    assert "attached to run" in err
    assert "exit status 3" in out
    assert (sshd.home / "out").read_text() == "x\n"


def test_the_server_restarted(write: Write, sshd: Sshd) -> None:
    path = write({"id": "a", "commands": ["until [ -e go ]; do sleep 0.02; done; echo done"]})
    states = []
    with start(path, on=sshd.target) as begun:

        def restart() -> None:
            sshd.stop()
            time.sleep(1)
            sshd.start()
            (sshd.home / "go").touch()

        threading.Timer(0.3, restart).start()
        for event in begun.events(output=True):
            if event["type"] == "connection":
                states.append(event["state"])
    assert event["type"] == "run.finished"
    assert event["status"] == "ok"
    assert states == ["lost", "back"]
    begun.transport.close()


def test_the_engine_there_killed(write: Write, sshd: Sshd, cli: Cli) -> None:
    path = write(
        {"id": "a", "commands": ["echo a >> out"]},
        {"id": "b", "commands": ["echo b >> out; until [ -e go ]; do sleep 0.02; done"]},
    )
    begun = start(path, on=sshd.target)
    wait_for(lambda: (sshd.home / "out").exists() and "b" in (sshd.home / "out").read_text())
    for event in begun.so_far():
        if event["type"] == "run.started":
            os.kill(event["pid"], signal.SIGKILL)
    with pytest.raises(Exception, match="its engine was killed"):
        begun.result()
    begun.transport.close()
    (sshd.home / "go").touch()
    assert run(path, on=sshd.target).status == "ok"
    assert (sshd.home / "out").read_text() == "a\nb\n"


def test_a_node_that_is_gone_for_good(write: Write, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SILENT", 1.0)
    monkeypatch.setattr(session, "PING", 0.3)
    relay = Relay(sshd.port)
    transport = through(relay, sshd, connect_timeout=3.0, reconnect_timeout=2.0)
    path = write({"id": "a", "commands": ["sleep 600"]})
    begun = start(path, on=transport)
    relay.swallow = True
    began = time.monotonic()
    with pytest.raises(TargetError, match="lost, and not reconnected within 2 s: no answer within 3 s"):
        begun.result()
    assert time.monotonic() - began < 10
    # It goes on there: with the network back, the same command attaches.
    relay.swallow = False
    again = start(path, on=transport)
    assert again.attached
    assert again.id == begun.id
    assert again.cancel()
    assert again.result().status == "cancelled"
    transport.close()
    relay.close()


def test_secrets_are_in_no_argument_no_file_and_no_log(write: Write, sshd: Sshd, cli: Cli) -> None:
    secret = "hunter2hunter2"
    path = write(
        {"id": "a", "commands": ["echo $KEY <<KEY>>; until [ -e go ]; do sleep 0.02; done"]},
        {"id": "b", "commands": ["echo <<KEY>>; exit 1"]},
        variables={"KEY": {"secret": True, "required": True}},
    )
    environ = {**os.environ, "KEY": secret}
    process = subprocess.Popen(
        command(path, "--on", sshd.target, "--env", "KEY", "-v"),
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    wait_for(lambda: "***" in (process.stdout.readline() if process.stdout else ""))
    for name in os.listdir("/proc"):
        if name.isdigit() and name != str(os.getpid()):
            try:
                assert secret.encode() not in Path(f"/proc/{name}/cmdline").read_bytes()
            except FileNotFoundError:
                continue
    (sshd.home / "go").touch()
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert secret not in out
    kept: dict[Path, bytes] = {}
    for path in (*sshd.state.rglob("*"), *sshd.folder.rglob("*")):
        # The engine has still to remove its own.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            kept[path] = path.read_bytes()
    assert len(kept) > 10
    assert [path for path, content in kept.items() if secret.encode() in content] == []


def test_what_a_node_prints_while_nobody_listens_is_not_lost(write: Write, sshd: Sshd) -> None:
    path = write(
        {
            "id": "a",
            "commands": [
                "for i in $(seq 3000); do echo line $i; done; touch printed; until [ -e go ]; do sleep 0.02; done"
            ],
        }
    )
    with start(path, on=sshd.target) as begun:
        begun.transport.close()
    wait_for(lambda: (sshd.home / "printed").exists())
    with start(path, on=sshd.target) as again:
        assert again.id == begun.id
        (sshd.home / "go").touch()
        text = "".join(event["text"] for event in again.events(output=True) if event["type"] == "output")
    assert text.splitlines() == [f"line {number}" for number in range(1, 3001)]
    again.transport.close()


def test_the_connection_cut_while_something_else_is_asked_for(write: Write, sshd: Sshd) -> None:
    """Who follows goes on, whoever else has found the connection lost and made a new one."""
    path = write({"id": "a", "commands": ["echo one; until [ -e go ]; do sleep 0.02; done; echo two"]})
    relay = Relay(sshd.port)
    transport = through(relay, sshd)
    text = ""
    with start(path, on=transport) as begun:
        for event in begun.events(output=True):
            if event["type"] == "output":
                text += event["text"]
                if text == "one\n":
                    relay.cut()
                    time.sleep(0.5)
                    assert begun.alive()
                    assert transport.followed(begun.id)
                    (sshd.home / "go").touch()
    assert text == "one\ntwo\n"
    transport.close()
    relay.close()


def test_the_connection_cut_while_outputs_come_back(write: Write, sshd: Sshd) -> None:
    path = write(
        {
            "id": "a",
            "commands": ["head -c 60000000 /dev/urandom > big"],
            "outputs": [{"from": "big", "to": "big"}],
        },
        {"id": "b", "commands": ["true"]},
    )
    relay = Relay(sshd.port)
    transport = through(relay, sshd)
    with start(path, on=transport) as begun:
        for event in begun.events():
            if event["type"] == "step.started" and event["step"] == "a":
                threading.Timer(0.45, relay.cut).start()
    assert event["type"] == "run.finished"
    assert Path("big").read_bytes() == (sshd.home / "big").read_bytes()
    transport.close()
    relay.close()


def test_the_same_command_after_the_network_was_lost_without_a_sign(
    write: Write, sshd: Sshd, cli: Cli
) -> None:
    """It waits until it is clear that nobody follows any more, and attaches."""
    path = write({"id": "a", "commands": ["touch at; until [ -e go ]; do sleep 0.02; done"]})
    relay = Relay(sshd.port)
    transport = through(relay, sshd)
    with start(path, on=transport) as begun:
        wait_for(lambda: (sshd.home / "at").exists())
        relay.swallow = True
        threading.Timer(10.0, (sshd.home / "go").touch).start()
        done = cli(path, "--on", sshd.target)
        assert done.returncode == 0, done.stderr
        assert f"attached to run {begun.id}" in done.stderr
    relay.close()
    transport.close()


def test_a_cancel_that_the_network_has_swallowed(
    write: Write, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SILENT", 1.0)
    monkeypatch.setattr(session, "PING", 0.3)
    path = write(
        {"id": "a", "commands": ["touch at; sleep 600"]},
        {"id": "z", "always": True, "commands": ["sleep 1; touch clean"]},
    )
    relay = Relay(sshd.port)
    transport = through(relay, sshd, connect_timeout=3.0)
    with start(path, on=transport) as begun:
        asked = False

        def idle() -> None:
            nonlocal asked
            if not asked and (sshd.home / "at").exists():
                asked = relay.swallow = True
                assert begun.cancel()
                threading.Timer(2.0, lambda: setattr(relay, "swallow", False)).start()

        events = list(begun.events(idle=idle))
    assert events[-1]["type"] == "run.finished"
    assert events[-1]["status"] == "cancelled"
    assert (sshd.home / "clean").exists()
    transport.close()
    relay.close()


def test_a_flood_does_not_fill_the_memory_while_outputs_come_back(write: Write, sshd: Sshd) -> None:
    import resource

    outputs = [{"from": "small", "to": f"small{number}"} for number in range(300)]
    path = write(
        {"id": "a", "commands": ["echo x > small"], "outputs": outputs},
        {"id": "b", "commands": ["yes 'a line of a flood' | head -c 700000000"]},
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    with start(path, on=sshd.target) as begun:
        for event in begun.events(output=True):
            if event["type"] == "output":
                size += len(event["text"])
    assert size == 700_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    begun.transport.close()

"""Runs over a real sshd: everything that works on this machine works there."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import LockHeldError, TargetError, UsageError, attach, run, start
from taskrunner.transports import connect
from taskrunner.transports.ssh.transport import SshTransport
from tests.helpers import Process, wait_for
from tests.relay import Relay
from tests.sshd import Sshd, keygen

Write = Callable[..., Path]
Cli = Callable[..., Process]


def test_steps_run_there_in_the_home_and_once(write: Write, sshd: Sshd) -> None:
    path = write(
        {"id": "a", "skip_if": "[ -e made ]", "commands": ["pwd; touch made"]},
        {"id": "b", "commands": ["echo <<WORD>> $WORD"]},
        variables={"WORD": "w"},
    )
    seen: list[Any] = []
    result = run(path, on=sshd.target, on_event=seen.append, env={"WORD": "é x"})
    assert (result.status, result.ok, result.skipped) == ("ok", 2, 0)
    assert (sshd.home / "made").exists()
    logs = {log.name: log.read_text() for log in (sshd.state / "runs" / result.run / "logs").iterdir()}
    assert logs == {"001-a.log": f"{sshd.home}\n", "002-b.log": "é x é x\n"}
    assert run(path, on=sshd.target, env={"WORD": "é x"}).skipped == 2
    assert run(path, on=sshd.target, env={"WORD": "z"}).ok == 1


def test_the_engine_is_shipped_once(write: Write, sshd: Sshd) -> None:
    path = write({"id": "a", "skip_if": "false", "commands": ["true"]})
    run(path, on=sshd.target)
    (folder,) = (sshd.state / "engine").iterdir()
    before = (folder / "engine" / "main.py").stat()
    run(path, on=sshd.target)
    after = (folder / "engine" / "main.py").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_output_comes_live_and_is_masked(write: Write, sshd: Sshd) -> None:
    secret = "hunter2hunter2"
    path = write(
        {
            "id": "a",
            "commands": [
                "echo one $KEY; until [ -e go ]; do sleep 0.02; done; printf 'tw\\303'; sleep 0.1; printf '\\251o\\n'"
            ],
        },
        variables={"KEY": {"secret": True, "required": True}},
    )
    with start(path, on=sshd.target, env={"KEY": secret}) as begun:
        text = ""
        for event in begun.events(output=True):
            if event["type"] == "output":
                text += event["text"]
                (sshd.home / "go").touch()
        assert text == "one ***\ntwéo\n"
    assert secret not in everything_in(sshd.state)
    begun.transport.close()


def everything_in(folder: Path) -> str:
    return "".join(
        path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file()
    )


def test_a_service_outlives_the_connection(write: Write, sshd: Sshd) -> None:
    serve = {"name": "web", "command": ["sh", "-c", "echo up; exec sleep 600"], "ready": {"log": "up"}}
    path = write({"id": "a", "service": serve}, file="work/up.json")
    down = write({"id": "a", "service": {"name": "web", "state": "stopped"}}, file="work/down.json")
    assert run(path, on=sshd.target).ok == 1
    assert run(path, on=sshd.target).skipped == 1
    assert run(down, on=sshd.target).status == "ok"


def test_dry_run_check_list_and_selection(write: Write, sshd: Sshd, cli: Cli) -> None:
    path = write(
        {"id": "a", "skip_if": "[ -e a ]", "commands": ["touch a"]},
        {"id": "b", "skip_if": "false", "commands": ["touch b"]},
    )
    dry = cli(path, "--on", sshd.target, "--dry-run")
    assert "would run" in dry.stdout
    assert not (sshd.home / "a").exists()
    assert cli(path, "--on", sshd.target, "--only", "a", "--check").returncode == 0
    assert cli(path, "--on", sshd.target, "--check").returncode == 1
    assert (sshd.home / "b").exists()
    again = cli("--from", "b", "--on", sshd.target)
    assert again.returncode == 0
    assert "before --from b" in again.stdout


def test_a_failure_says_what_and_how_to_go_on(write: Write, sshd: Sshd, cli: Cli) -> None:
    path = write({"id": "a", "commands": ["echo why; exit 194"]})
    done = cli(path, "--on", sshd.target)
    assert done.returncode == 1
    assert "| why" in done.stdout
    assert f"taskrunner {path} --from a --on {sshd.target}" in done.stdout


def test_status_logs_show_history_and_cancel(write: Write, sshd: Sshd, cli: Cli) -> None:
    path = write(
        {"id": "a", "commands": ["echo hello; sleep 600"]},
        {"id": "z", "always": True, "commands": ["touch z"]},
    )
    begun = cli(path, "--on", sshd.target, "--detach").stdout.strip()
    wait_for(lambda: "at a (1/2)" in cli("status", "--on", sshd.target).stdout)
    wait_for(lambda: "hello" in cli("logs", "--on", sshd.target, "a").stdout)
    done = cli("cancel", "--on", sshd.target)
    assert "cancelled" in done.stdout
    assert (sshd.home / "z").exists()
    assert begun in cli("history", "--on", sshd.target).stdout
    assert "■  a" in cli("show", "--on", sshd.target).stdout
    assert cli("attach", "--on", sshd.target).returncode == 130


def test_ctrl_c_ends_the_tree_there(write: Write, sshd: Sshd) -> None:
    import signal

    from tests.helpers import command

    path = write({"id": "a", "commands": ["echo $$ > pid; sleep 600 & sleep 600"]})
    process = subprocess.Popen(command(path, "--on", sshd.target), stdout=subprocess.PIPE)
    pid = int(wait_for(lambda: (sshd.home / "pid").exists() and (sshd.home / "pid").read_text().strip()))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - began < 5
    assert not Path(f"/proc/{pid}").exists()
    assert process.stdout
    process.stdout.close()


def test_two_controllers_of_the_same_command(write: Write, sshd: Sshd, cli: Cli) -> None:
    from tests.helpers import command

    task = {"id": "a", "commands": ["touch at; until [ -e go ]; do sleep 0.02; done; echo x >> out"]}
    path = write(task)
    first = subprocess.Popen(command(path, "--on", sshd.target), stdout=subprocess.DEVNULL)
    wait_for(lambda: (sshd.home / "at").exists())
    refused = cli(path, "--on", sshd.target)
    assert refused.returncode == 4
    assert "another client follows it" in refused.stderr
    other = write({"id": "a", "commands": ["true"]})
    with pytest.raises(LockHeldError, match="with other steps"):
        run(other, on=sshd.target)
    write(task)
    first.kill()
    first.wait()
    with start(path, on=sshd.target) as second:
        assert second.attached
        (sshd.home / "go").touch()
        attached = second.result()
    second.transport.close()
    assert [attached.run] == [run.name for run in (sshd.state / "runs").iterdir()]
    assert attached.status == "ok"
    assert (sshd.home / "out").read_text() == "x\n"


def test_two_controllers_at_the_same_moment(write: Write, sshd: Sshd) -> None:
    from tests.helpers import command

    path = write({"id": "a", "commands": ["sleep 8; echo x >> out"]})
    both = [subprocess.Popen(command(path, "--on", sshd.target), stdout=subprocess.DEVNULL) for _ in "ab"]
    assert sorted(process.wait(30) for process in both) == [0, 4]
    assert (sshd.home / "out").read_text() == "x\n"


def test_a_delay_costs_little_whatever_the_number_of_steps(write: Write, sshd: Sshd, tmp_path: Path) -> None:
    path = write(*({"id": f"s{n:02}", "skip_if": "false", "commands": ["echo x"]} for n in range(50)))
    relay = Relay(sshd.port, delay=0.1)
    (tmp_path / "home/.ssh/known_hosts").write_text(sshd.known_as(f"[127.0.0.1]:{relay.port}"))
    began = time.monotonic()
    with start(path, on=sshd.target.replace(str(sshd.port), str(relay.port))) as begun:
        lines = sum(event["type"] == "output" for event in begun.events(output=True))
    took = time.monotonic() - began
    assert lines == 50
    # 50 steps with a round trip of 0.2 s each would take 10 s.
    assert took < 6
    begun.transport.close()
    relay.close()


def test_a_scheme_that_nobody_knows(write: Write) -> None:
    path = write({"id": "a", "commands": ["true"]})
    with pytest.raises(UsageError, match=r"unknown target scheme shh://"):
        run(path, on="shh://host")
    with pytest.raises(UsageError, match="is not a target"):
        connect("host")


def test_what_a_json_run_says(write: Write, sshd: Sshd, cli: Cli) -> None:
    path = write({"id": "a", "commands": ["echo x"]})
    done = cli(path, "--on", sshd.target, "--json", "-v")
    types = [json.loads(line)["type"] for line in done.stdout.splitlines()]
    assert types == ["run.started", "step.started", "output", "step.finished", "run.finished"]


def test_attach_by_the_beginning_of_an_id(write: Write, sshd: Sshd) -> None:
    path = write({"id": "a", "commands": ["echo x"]})
    done = run(path, on=sshd.target)
    transport = SshTransport(sshd.target)
    with attach(done.run[:-3], transport) as found:
        assert found.result().run == done.run
        assert found.log("a") == b"x\n"
    transport.close()


def test_keys_of_every_kind(write: Write, sshd: Sshd, identity: Path) -> None:
    path = write({"id": "a", "skip_if": "false", "commands": ["true"]})
    for kind in ("rsa", "ecdsa"):
        for file in identity.parent.glob("id_*"):
            file.unlink()
        sshd.authorize(keygen(identity.parent / f"id_{kind}", kind))
        assert run(path, on=sshd.target).status == "ok"
    sshd.authorized.write_text("")
    with pytest.raises(TargetError, match="all offered keys were rejected"):
        run(path, on=sshd.target)


def test_a_node_whose_engine_cannot_answer(sshd: Sshd, write: Write) -> None:
    """Each connection ends at the first question: that is said, and not tried for ever."""
    path = write({"id": "a", "commands": ["true"]})
    run(path, on=sshd.target)
    (folder,) = (sshd.state / "engine").iterdir()
    serve = folder / "engine" / "node" / "stdio_server.py"
    serve.write_text(
        serve.read_text().replace(
            "def _asked(", "def _asked(self, *_): raise MemoryError('no more')\n    def _old("
        )
    )
    with pytest.raises(TargetError, match="closed by the node: MemoryError: no more, repeatedly"):
        run(path, on=sshd.target)


def test_show_and_logs_bring_nothing_back(write: Write, sshd: Sshd, cli: Cli) -> None:
    path = write({"id": "a", "commands": ["echo x > out"], "outputs": [{"from": "out", "to": "out"}]})
    assert cli(path, "--on", sshd.target).returncode == 0
    Path("out").write_text("edited")
    for verb in ("show", "logs", "history", "status"):
        assert cli(verb, "--on", sshd.target).returncode == 0
    assert Path("out").read_text() == "edited"
    import shutil

    os.unlink("out")
    shutil.rmtree(sshd.state / "runs")
    done = cli(path, "--on", sshd.target)
    assert "a: its outputs are no longer on the node" in done.stdout
    assert cli(path, "--on", sshd.target, "--only", "a").returncode == 0
    assert Path("out").read_text() == "x\n"

"""What Run Command finds on a machine: systemd, /etc/environment, other users, another boot.

Each command runs in a mount namespace of its own, where these stand as a test has them.
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run, start
from taskrunner.errors import TargetError
from taskrunner.transports import connect
from tests.aws import ONE, Aws
from tests.transports.test_ssm import Write

SYSTEMD_RUN = """#!{python}
import argparse, os, sys
p = argparse.ArgumentParser()
for flag in ("--quiet", "--collect"):
    p.add_argument(flag, action="store_true")
for option in ("--unit", "--uid", "--gid"):
    p.add_argument(option)
for option in ("--setenv", "--property"):
    p.add_argument(option, action="append", default=[])
p.add_argument("command", nargs=argparse.REMAINDER)
o = p.parse_args()
try:
    os.mkdir({folder!r} + "/" + o.unit)
except FileExistsError:
    sys.exit(f"Failed to start transient service unit: Unit {{o.unit}}.service was already loaded")
print(sys.argv[1:], file=open({folder!r} + "/" + o.unit + "/args", "w"))
if os.fork():
    sys.exit()
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3):
    os.dup2(null, fd)
os.closerange(3, 256)
os.setgid(int(o.gid))
os.setuid(int(o.uid))
os.chdir("/")
os.execve(o.command[0], o.command, dict(pair.split("=", 1) for pair in o.setenv))
"""


def mounted(cloud: Aws, *binds: tuple[Path, str], before: str = "") -> None:
    """Commands see these files where those are named."""
    lines = [f"mount --bind {shlex.quote(str(file))} {place}" for file, place in binds]
    script = "; ".join(["set -e", *lines, before or ":", 'exec "$@"'])
    cloud.ssm.instances[ONE].prefix = ("unshare", "-m", "sh", "-c", script, "sh")


@pytest.fixture
def systemd(cloud: Aws) -> Path:
    """The folder of the units that were started."""
    units, bin = cloud.folder / "units", cloud.folder / "bin"
    units.mkdir()
    bin.mkdir()
    (bin / "systemd-run").write_text(SYSTEMD_RUN.format(python=sys.executable, folder=str(units)))
    (bin / "systemd-run").chmod(0o755)
    cloud.ssm.instances[ONE].env["PATH"] = f"{bin}:{os.environ['PATH']}"
    mounted(cloud, before="mount -t tmpfs none /run; mkdir -p /run/systemd/system")
    return units


def test_a_run_is_a_unit_of_its_own(cloud: Aws, write: Write, systemd: Path) -> None:
    path = write({"id": "a", "commands": ["echo $HOME; ps -o sid= -p $$ >/dev/null"]})
    cloud.front.random.seed(2)
    cloud.front.once.add("SendCommand")  # accepted, and sent again: one unit
    with start(path, on=cloud.target()) as begun:
        events = list(begun.events(output=True))
    assert [event["text"] for event in events if event["type"] == "output"] == [
        f"{cloud.ssm.instances[ONE].env['HOME']}\n"
    ]
    assert [unit.name for unit in systemd.iterdir()] == [f"taskrunner-{begun.id}"]
    said = (systemd / f"taskrunner-{begun.id}" / "args").read_text()
    assert "'--property=KillMode=process', '--property=SendSIGKILL=no'" in said
    assert "AWS_SSM" not in said


def test_where_systemd_does_not_take_it_the_engine_leaves_by_itself(
    cloud: Aws, write: Write, systemd: Path
) -> None:
    shim = cloud.folder / "bin" / "systemd-run"
    shim.write_text("#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2; exit 1\n")
    assert run(write({"id": "a", "commands": ["true"]}), on=cloud.target()).ok == 1
    assert not list(systemd.iterdir())


def test_the_environment_of_a_login(cloud: Aws, write: Write) -> None:
    lines = cloud.folder / "environment"
    lines.write_text("# a comment\nA_PATH=\"/opt/amazon/efa/bin\"\nexport B='1 2'\n")
    mounted(cloud, (lines, "/etc/environment"))
    path = write({"id": "a", "commands": ['echo "$A_PATH|$B|$AWS_REGION|${SSM_COMMAND_ID-}"; ulimit -l']})
    with start(path, on=cloud.target()) as begun:
        text = "".join(event["text"] for event in begun.events(output=True) if event["type"] == "output")
    assert text.splitlines()[0] == "/opt/amazon/efa/bin|1 2|us-east-1|"


def test_another_user(cloud: Aws, write: Write, systemd: Path) -> None:
    """Who the run is for, there under systemd, with a home and groups of its own; one that is not there."""
    user = pwd.getpwnam("daemon")
    state = cloud.ssm.instances[ONE].state
    state.mkdir()
    os.chown(state, user.pw_uid, user.pw_gid)
    for folder in state.parents:
        if folder.owner() == "root" and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    path = write({"id": "a", "commands": ["id -un; id -gn; echo $HOME $USER; touch mine 2>&1 | cat"]})
    # Its interpreter is one that everybody may read.
    with start(path, on=connect(f"ssm://daemon@{ONE}", python="/usr/bin/python3")) as begun:
        text = "".join(event["text"] for event in begun.events(output=True) if event["type"] == "output")
    assert text.splitlines()[:3] == ["daemon", "daemon", f"{user.pw_dir} daemon"]
    assert (state / "runs" / begun.id).owner() == "daemon"
    with pytest.raises(TargetError, match="no user nobody-here"):
        run(path, on=f"ssm://nobody-here@{ONE}")


def test_an_interpreter_that_does_not_work(cloud: Aws, write: Write) -> None:
    broken = cloud.folder / "python"
    broken.write_text("#!/bin/sh\necho 'No module named encodings' >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(
        TargetError, match=f"{ONE}: the command ended with status Failed: .*No module named encodings"
    ) as caught:
        run(write({"id": "a", "commands": ["true"]}), on=connect(cloud.target(), python=str(broken)))
    assert "python -c pass` works there" in caught.value.hint


def test_a_machine_that_was_restarted_is_said_to_be(cloud: Aws, write: Write) -> None:
    boot = cloud.folder / "boot_id"
    boot.write_text("11111111-1111-1111-1111-111111111111\n")
    mounted(cloud, (boot, "/proc/sys/kernel/random/boot_id"))
    path = write(
        {"id": "a", "commands": ["true"]}, {"id": "b", "commands": ["[ -e on ] || { touch on; sleep 60; }"]}
    )

    def restart() -> None:
        boot.write_text("22222222-2222-2222-2222-222222222222\n")
        cloud.ssm.reboot(ONE)

    with start(path, on=connect(cloud.target())) as begun:
        threading.Timer(2.5, restart).start()
        with pytest.raises(Exception, match="the machine was restarted"):
            begun.result()
    result: Any = run(path, on=cloud.target())
    assert (result.status, result.skipped) == ("ok", 1)

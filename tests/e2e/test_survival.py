"""Everything that can die does, for real: what was done stays done, and nothing runs twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import LocalTransport, LockHeldError, attach, past_runs, run, start
from taskrunner.engine.run import launch
from taskrunner.engine.store import identity, paths
from tests.helpers import WHOLE, Process, command, completed, kill_all, left_of, started_with, wait_for

Write = Callable[..., Path]
Cli = Callable[..., Process]
STEPS = 6
KILLS = 200 if WHOLE else 60


def appending(step: int, pause: float = 0.02) -> dict[str, Any]:
    """A step that notes its beginning and its end, and that another one runs at the same time."""
    return {
        "id": f"s{step}",
        "commands": [
            "exec 9>>lock; flock -n 9 || echo overlap >> overlaps",
            f"echo begin {step} >> lines; sleep {pause}; echo end {step} >> lines",
        ],
    }


def controller(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(path), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def goes_on(path: Path, seed: int) -> None:
    """The same command again, which brings the run to its end."""
    again = completed(command(path))
    assert again.returncode == 0, (seed, again.stdout, again.stderr)


def engine_pid(home: Path) -> int | None:
    for path in home.glob("runs/*/engine.json"):
        with contextlib.suppress(ValueError, OSError):
            known = json.loads(path.read_text())
            if identity.alive(known):
                return int(known["pid"])
    return None


def fresh() -> None:
    for name in ("lines", "overlaps", "lock"):
        Path(name).unlink(missing_ok=True)


def lines() -> Counter[str]:
    return Counter(Path("lines").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.survival
def test_the_controller_killed_at_random_moments(write: Write, home: Path) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for number in range(KILLS):
        fresh()
        path = write(*map(appending, range(STEPS)), file=f"work/f{number}.json")
        first = controller(path)
        time.sleep(rng.uniform(0.0, 0.4))
        first.kill()
        first.wait()
        goes_on(path, seed)
        assert lines() == Counter(f"{word} {i}" for i in range(STEPS) for word in ("begin", "end")), seed
        assert not Path("overlaps").exists(), seed


@pytest.mark.slow
@pytest.mark.survival
def test_the_engine_killed_at_random_moments(write: Write, home: Path) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    hits = 0
    for number in range(KILLS):
        fresh()
        path = write(*map(appending, range(STEPS)), file=f"work/f{number}.json")
        first = controller(path)
        pid = wait_for(lambda: engine_pid(home), what="the start of the engine")
        time.sleep(rng.uniform(0.0, 0.2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        hits += first.wait(30) != 0
        goes_on(path, seed)
        # The step's own process was not killed: it is waited for, not run again.
        assert lines() == Counter(f"{word} {i}" for i in range(STEPS) for word in ("begin", "end")), seed
        assert not Path("overlaps").exists(), seed
    assert hits > KILLS / 4


@pytest.mark.slow
@pytest.mark.survival
def test_engine_and_step_killed_together(write: Write, home: Path) -> None:
    """As when the machine goes down: a step cut in its middle is run again, a finished one is not."""
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    again = 0
    for number in range(trials := 60 if WHOLE else 20):
        fresh()
        path = write(*map(appending, range(STEPS)), file=f"work/f{number}.json")
        first = controller(path)
        wait_for(lambda: engine_pid(home))
        time.sleep(rng.uniform(0.0, 0.2))
        journal = {entry for file in home.glob("journal/*") for entry in file.read_text().splitlines()}
        kill_all(str(home), but=first.pid)
        first.wait(30)
        goes_on(path, seed)
        found = lines()
        assert set(found) == {f"{word} {i}" for i in range(STEPS) for word in ("begin", "end")}, seed
        repeated = [line for line, count in found.items() if count > 1 and line.startswith("begin")]
        assert len(repeated) <= 1, (seed, found)
        again += len(repeated)
        recorded = {json.loads(entry)["step"] for entry in journal if f'"f{number}' in entry}
        assert not {f"s{line[-1]}" for line in repeated} & recorded, seed
        assert not Path("overlaps").exists(), seed
    assert again > trials / 12


def test_the_same_command_attaches_to_a_run_that_nobody_follows(write: Write, cli: Cli) -> None:
    path = write(appending(0, 4.0), appending(1))
    begun = cli(path, "--detach")
    again = cli(path)
    assert f"attached to run {begun.stdout.strip()}" in again.stderr
    assert "[OK] s0" in again.stdout
    assert again.returncode == 0
    assert max(lines().values()) == 1


def test_a_run_that_somebody_follows_keeps_others_out(write: Write, cli: Cli) -> None:
    path = write(appending(0, 4.0))
    with start(path) as begun:
        second = cli(path)
        assert second.returncode == 4
        assert f"`taskrunner attach {begun.id}`" in second.stderr
        with pytest.raises(LockHeldError):
            run(path)
        assert begun.result().status == "ok"


def test_another_plan_of_the_same_file_is_kept_out_also_when_nobody_follows(write: Write, cli: Cli) -> None:
    path = write(appending(0, 4.0))
    assert cli(path, "--detach").returncode == 0
    assert cli(path, "--reset").returncode == 4
    assert cli("cancel").returncode == 0


def test_a_changed_step_is_not_run_beside_its_lost_predecessor(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": ["touch started; sleep 30; touch never"]})
    first = controller(path)
    wait_for(lambda: Path("started").exists())
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    first.wait()
    assert left_of(home)
    result = run(write({"id": "a", "commands": ["echo changed"]}))
    assert result.status == "ok"
    assert not left_of(home)
    assert not Path("never").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_tree_and_runs_the_clean_up(write: Write, home: Path, number: int) -> None:
    path = write(
        {"id": "a", "commands": ["touch started; sleep 60 & sleep 61"]},
        {"id": "b", "commands": ["touch never"]},
        {"id": "c", "always": True, "commands": ["sleep 0.2; touch cleaned"]},
    )
    process = controller(path)
    wait_for(lambda: Path("started").exists())
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(20) == 130
    assert time.monotonic() - began < 5
    assert Path("cleaned").exists()
    assert not Path("never").exists()
    assert not left_of(home)


def test_a_second_ctrl_c_leaves_at_once(write: Write) -> None:
    path = write(
        {"id": "a", "commands": ["touch started; sleep 60"]},
        {"id": "c", "always": True, "commands": ["sleep 4; touch cleaned"]},
    )
    process = controller(path)
    wait_for(lambda: Path("started").exists())
    process.send_signal(signal.SIGINT)
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.wait(3) == 130
    wait_for(lambda: Path("cleaned").exists())


def test_a_hangup_leaves_the_run_alone(write: Write) -> None:
    path = write({"id": "a", "commands": ["touch started; sleep 0.7; touch finished"]})
    process = controller(path)
    wait_for(lambda: Path("started").exists())
    process.send_signal(signal.SIGHUP)
    assert process.wait(2) == 130
    wait_for(lambda: Path("finished").exists())


def test_a_closed_terminal(write: Write, tmp_path: Path) -> None:
    path = write({"id": "a", "commands": ["touch started; sleep 0.7; touch finished"]})
    tmux = ["tmux", "-S", str(tmp_path / "tmux")]
    line = " ".join(command(path))
    environment = f"TASKRUNNER_HOME={os.environ['TASKRUNNER_HOME']}"
    subprocess.run(
        [*tmux, "-f", "/dev/null", "new-session", "-d", "-s", "t", "-e", environment, line], check=True
    )
    wait_for(lambda: Path("started").exists())
    subprocess.run([*tmux, "kill-server"], check=True)
    wait_for(lambda: Path("finished").exists())
    wait_for(lambda: past_runs(1)[0].status == "ok")


def in_small_home(tmp_path: Path, options: str, script: str) -> Process:
    """Run a shell script with a state folder of its own kind, in a mount namespace."""
    small = tmp_path / "small"
    small.mkdir()
    mount = (
        f"mount -t tmpfs -o {options} none {small} && cd {tmp_path}/work && export TASKRUNNER_HOME={small}; "
    )
    taskrunner = f'taskrunner() {{ {sys.executable} -m taskrunner "$@"; }}; '
    return completed(["unshare", "-rm", "bash", "-c", mount + taskrunner + script])


def test_a_full_disk(write: Write, tmp_path: Path) -> None:
    fill = 'head -c 4000000 /dev/zero > "$TASKRUNNER_HOME/fill" 2>/dev/null; echo 1 >> ran'
    names = [str(number) for number in range(80)]
    write(*({"id": name, "commands": [fill if name == "1" else f"echo {name} >> ran"]} for name in names))
    done = in_small_home(
        tmp_path,
        "size=1m",
        'taskrunner tasks.json; echo "status $?"; rm "$TASKRUNNER_HOME/fill"; taskrunner tasks.json; echo "status $?"',
    )
    assert "No space left on device" in done.stdout + done.stderr
    assert "status 1\n" in done.stdout
    assert done.stdout.endswith("status 0\n")
    assert "Traceback" not in done.stderr
    # Only the step that could not be recorded may have been run again.
    counts = Counter((tmp_path / "work" / "ran").read_text().split())
    assert set(counts) == set(names)
    assert sorted(counts.values())[-2:] in ([1, 1], [1, 2])


def test_a_read_only_state_folder(write: Write, tmp_path: Path) -> None:
    write({"id": "a", "commands": ["touch ran"]})
    done = in_small_home(tmp_path, "size=1m,ro", 'taskrunner tasks.json; echo "status $?"')
    assert done.stdout == "status 2\n"
    assert "Read-only file system" in done.stderr
    assert "set TASKRUNNER_HOME" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work" / "ran").exists()


def test_a_clock_that_jumps(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's clock goes back a day with every look at it, and a day on with the next."""
    jump = "import time, itertools as i; n = i.count(); real = time.time; time.time = lambda: real() + (next(n) % 2 - 1) * 86400; "
    monkeypatch.setattr(launch, "LAUNCH", jump + launch.LAUNCH)
    path = write(
        {"id": "a", "timeout": 5, "commands": ["sleep 0.2; echo a >> out"]},
        {"id": "b", "commands": ["echo b >> out"]},
    )
    result = run(path)
    assert result.status == "ok"
    assert 0.2 < result.duration < 3
    assert run(path).skipped == 2


def test_a_journal_cut_in_the_middle_of_a_line(write: Write, home: Path) -> None:
    path = write(*({"id": name, "commands": [f"echo {name} >> out"]} for name in "abc"))
    run(path)
    (journal,) = home.glob("journal/*")
    journal.write_bytes(journal.read_bytes()[:-20])
    run(path)
    assert Path("out").read_text().split() == ["a", "b", "c", "c"]
    assert run(path).skipped == 3


def test_a_pid_that_another_process_has_taken_over(write: Write, home: Path) -> None:
    path = write({"id": "a", "commands": ["touch started; sleep 30"]})
    first = controller(path)
    wait_for(lambda: Path("started").exists())
    for pid in [pid for pid in started_with(str(home)) if pid != first.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert first.wait(10) == 1
    other = subprocess.Popen(["sleep", "60"])
    try:
        (record,) = home.glob("runs/*/engine.json")
        record.write_text(json.dumps({**json.loads(record.read_text()), "pid": other.pid}))
        assert past_runs(1)[0].status == "interrupted"
        assert not attach("last").cancel()
        changed = write({"id": "a", "commands": ["echo other"]})
        assert run(changed).status == "ok"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_secrets_are_nowhere_after_a_run_and_in_no_argument_during_it(write: Write, home: Path) -> None:
    secret = "s3cr3t-value-" + os.urandom(4).hex()
    path = write(
        {
            "id": "a",
            "commands": [
                'echo <<TOKEN>> $TOKEN $URL; touch started; sleep 0.5; printf \'%s\' "${TOKEN:0:6}"; sleep 0.1; echo "${TOKEN:6}"'
            ],
        },
        {"id": "b", "commands": ["echo <<TOKEN>> >&2; exit 3"]},
        variables={"TOKEN": {"secret": True, "required": True}, "URL": "https://<<TOKEN>>@host"},
    )
    begun = start(path, env={"TOKEN": secret})
    wait_for(lambda: Path("started").exists())
    for pid in started_with(str(home)):
        assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    for file in home.rglob("*"):
        assert (
            file.stat().st_mode & 0o077 == 0
            or file.is_dir()
            or secret not in file.read_text(errors="replace")
        )
    with begun:
        assert begun.result().failures[0]["tail"] == ["***"]
    assert attach(begun.id).log("a") == b"*** *** ***\n***\n"
    for file in home.rglob("*"):
        assert file.is_dir() or secret.encode() not in file.read_bytes(), file


def test_a_lost_engine_is_said_and_the_next_run_goes_on(write: Write, home: Path, cli: Cli) -> None:
    path = write(appending(0), appending(1, 0.8), appending(2))
    first = subprocess.Popen(command(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: Path("lines").exists() and "begin 1" in Path("lines").read_text())
    os.kill(wait_for(lambda: engine_pid(home)), signal.SIGKILL)
    _, said = first.communicate(timeout=20)
    assert first.returncode == 1
    assert "was interrupted" in said
    assert "run the same command again" in said
    again = cli(path)
    assert "whose engine was lost" in again.stdout
    assert again.returncode == 0
    assert max(lines().values()) == 1


def test_the_state_of_a_run_can_be_moved_and_read(write: Write, home: Path, tmp_path: Path) -> None:
    result = run(write({"id": "a", "commands": ["echo hello"]}))
    shutil.copytree(home, tmp_path / "copy")
    with attach(result.run, LocalTransport(tmp_path / "copy")) as found:
        assert [event["type"] for event in found.events()][-1] == "run.finished"
        assert found.log("a") == b"hello\n"
    assert paths.run_dir(str(home), result.run)

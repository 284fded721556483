"""Random faults, any number of times: every step is done once, nothing runs beside itself, nothing is left.

A trial is a file of short steps, each of which notes its beginning and its end in a ledger. Faults strike
while it runs; the same command is run again until it is done. Every trial draws from a seed of its own,
made from a base seed that is printed: TASKRUNNER_SEED=N draws the same. An ordinary run is a sample;
TASKRUNNER_SURVIVAL=whole makes it hundreds of trials.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import faults
from tests.e2e.faults import Trial, enter, namespace
from tests.helpers import WHOLE, command, started, started_with, wait_for
from tests.relay import Relay

pytestmark = pytest.mark.survival

SEED = int(os.environ.get("TASKRUNNER_SEED") or random.randrange(1 << 32))
HERE, SPECIAL, NODES = (125, 5, 60) if WHOLE else (12, 1, 5)
ONLY = os.environ.get("TASKRUNNER_FAULTS", "").split()
"""The names of faults, to look at some of them alone."""
STEPS, PATIENCE = 60, 90.0
KINDS = {"plain": 20, "exec": 8, "trap": 8, "close": 6, "term": 9, "retry": 4, "guard": 5}


def step(number: int, kind: str, folder: Path, rng: random.Random) -> dict[str, Any]:
    """A step that notes its beginning, its end, and that another one is at work; it ends in its own way."""
    say = "echo {} " + f"{number} >> {folder}/ledger"
    # Only who is killed himself may lose the lock: what he leaves behind does not have it.
    begin = f"exec 9>>{folder}/lock; flock -n -E 77 9; [ $? != 77 ] || echo {number} >> {folder}/overlaps; "
    begin += say.format("begin")
    nap, end = f"sleep {rng.uniform(0.0, 0.08):.3f} 9>&-", say.format("end")
    parts = [begin, nap, end]
    found: dict[str, Any] = {"id": f"s{number}"}
    if kind == "exec":
        parts = [begin, f"exec sh -c {shlex.quote(f'{nap}; {end}')}"]
    elif kind == "trap":
        parts = [begin, f"trap {shlex.quote(f'{end}; exit 0')} EXIT", nap]
    elif kind == "close":
        high = 'for f in /proc/$BASHPID/fd/*; do n=${f##*/}; [ "$n" -le 9 ] || eval "exec $n>&-"; done'
        parts = [begin, rng.choice([high, "exec 198>&- 199>&-"]), nap, end]
    elif kind == "term":
        parts = [f"trap : TERM; {begin}; {nap}; {end}"]
    elif kind == "retry":
        once = f"{folder}/tried{number}"
        parts = [f"[ -e {once} ] || {{ : > {once}; exit 3; }}", begin, nap, end]
        found["retries"] = {"attempts": 3, "delay": 0.01}
    elif kind == "guard":
        parts.append(f": > {folder}/made{number}")
        found["skip_if"] = f"[ -e {folder}/made{number} ]"
    elif rng.random() < 0.3:
        parts = ["; ".join(parts)]
    return {**found, "commands": parts}


def prepare(trial: Trial) -> None:
    """Write the trial's task file."""
    trial.work.mkdir(parents=True, exist_ok=True)
    trial.kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    trial.rng.shuffle(trial.kinds)
    steps = [step(number, kind, trial.work, trial.rng) for number, kind in enumerate(trial.kinds)]
    trial.file.write_text(json.dumps({"name": "Trial", "tasks": steps}))


def pass_through(trial: Trial, wanted: int, table: dict[str, tuple[faults.Fault, int]]) -> None:
    """Run the command until it is done, with this many faults on the way."""
    left = wanted
    # Once more when all is done: then nothing is.
    again = trial.rng.random() < 0.3
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and len(trial.story) < 400:
        trial.before, trial.now = trial.now, set()
        with at_work(trial):
            assert trial.process is not None
            due = time.monotonic() + trial.rng.uniform(0.1, 0.9)
            while trial.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.003)
                if left and time.monotonic() >= due:
                    left -= strike(trial, table)
                    due = time.monotonic() + trial.rng.uniform(0.0, 0.4)
            late = trial.process.poll() is None
        status = trial.process.returncode
        trial.story.append(f"exit {status}")
        settle(trial)
        said = trial.output.read_text(errors="replace")
        complaint = "does not end" if late else faults.judge(trial, status, said)
        if complaint:
            trial.wrong.append(f"{complaint}: {said[-400:]}")
        if status == 0 and not again:
            return
        again = again and status != 0
        if status == 4:
            time.sleep(0.2)
        trial.between()
    trial.wrong.append("no proper end")


@contextlib.contextmanager
def at_work(trial: Trial) -> Iterator[None]:
    """The command, under way; at the end it is gone."""
    clock = trial.rng.choice(trial.clocks)
    trial.story.append("start" + (f" {clock['FAKETIME']}" if clock else ""))
    with trial.output.open("wb") as output:
        trial.process = subprocess.Popen(
            [*trial.prefix, *command(trial.file, *trial.options)],
            env=trial.env(clock),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        pid = faults.controller(trial)
        if pid is not None:
            faults.send(pid, signal.SIGKILL)
        trial.process.wait()


def strike(trial: Trial, table: dict[str, tuple[faults.Fault, int]]) -> bool:
    """Let one of the faults happen; whether it has."""
    table = {name: table[name] for name in table if name in ONLY} or table
    name = trial.rng.choices([*table], [weight for _, weight in table.values()])[0]
    told, before = len(trial.story), set(trial.now)
    trial.story.append(f"{name}, at {len(trial.begun())} begun")
    trial.now.add(name)
    if table[name][0](trial):
        return True
    del trial.story[told:]
    trial.now = before
    return False


def settle(trial: Trial) -> None:
    """What is to be seen, or done, between two commands."""
    if trial.cancelled:
        # The last step that has begun when all is still is the one that the cancel has ended.
        if not faults.gone(trial, faults.engine):
            trial.wrong.append("the engine does not end after a cancel")
        for number in trial.begun()[-1:]:
            trial.hit(number, signal.SIGTERM)
        trial.cancelled = False
    if trial.garble and faults.gone(trial, faults.step_processes) and faults.gone(trial, faults.engine):
        trial.story.append(faults.garble(trial))


def verdict(trial: Trial, bystanders: dict[int, int], name: str) -> None:
    """Fail with all that is odd about the trial."""
    deadline = time.monotonic() + 10
    while (
        left := {**started(trial.mark), **started_with(str(trial.home_there))}
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        faults.send(pid, signal.SIGKILL)
    ledger = trial.ledger()
    begins, ends = (Counter(number for word, number in ledger if word == which) for which in ("begin", "end"))
    doubled = {
        number: f"{trial.kinds[number]}: {begins[number]} begun, {ends[number]} ended, hit {trial.hits[number]} times"
        for number in range(STEPS)
        if begins[number] > 1 + trial.hits[number] or ends[number] > 1 + trial.hits[number]
    }
    overlaps = trial.work / "overlaps"
    logs = [path.read_text(errors="replace") for path in trial.home.glob("runs/*/engine.log")]
    odd = {
        "lost": [number for number in range(STEPS) if not whole(ledger, number)],
        "doubled": doubled,
        "overlaps": overlaps.read_text().split() if overlaps.exists() else [],
        "wrong": trial.wrong,
        "foreign processes ended": sorted(bystanders.items() - faults.bystanders(name).items()),
        "left running": left,
        "tracebacks": [log[-1500:] for log in logs if "Traceback" in log],
    }
    counts = {what: len(found) for what, found in odd.items()}
    print(f"TASKRUNNER_SEED={SEED}: trial {trial.seed}: {counts}")
    told = "\n".join([*trial.story, "ledger: " + " ".join(f"{word[0]}{number}" for word, number in ledger)])
    assert not any(odd.values()), (
        f"TASKRUNNER_SEED={SEED}, trial {trial.seed}: {counts}\n"
        + "\n".join(f"{what}: {found}" for what, found in odd.items() if found)
        + f"\n{told}"
    )


def whole(ledger: list[tuple[str, int]], number: int) -> bool:
    """Whether the step has begun and then ended."""
    own = [word for word, which in ledger if which == number]
    return "begin" in own and "end" in own[own.index("begin") :]


@contextlib.contextmanager
def judged(trial: Trial, name: str = "") -> Iterator[None]:
    """What happens in it is judged at its end, with a process that looks like a step's beside it."""
    name = name or f"bystander-{uuid.uuid4().hex}"
    env = {key: value for key, value in os.environ.items() if key != "TASKRUNNER_HOME"}
    other = subprocess.Popen([*faults.LOOKS, name], stdin=subprocess.PIPE, env=env, start_new_session=True)
    assert other.stdin
    try:
        wait_for(lambda: other.pid in faults.bystanders(name))
        before = faults.bystanders(name)
        yield
        verdict(trial, before, name)
    finally:
        other.kill()
        other.stdin.close()
        other.wait()


@pytest.fixture(scope="module")
def clocks() -> Iterator[list[dict[str, str]]]:
    """The environments of clocks that are off, as long as their keepers live."""
    names = ("LD_PRELOAD", "FAKETIME", "FAKETIME_SHARED")
    code = f"printenv {' '.join(names)}; read -r x; :"
    # Files keep their times. The monotonic clock is off by as much: where it is not, Python cannot sleep.
    own = {"NO_FAKE_STAT": "1"}
    with contextlib.ExitStack() as stack:
        made = []
        for offset in ("+45d", "-45d"):
            keeper = subprocess.Popen(
                ["faketime", "-f", offset, "bash", "-c", code],
                env={**os.environ, **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(keeper)
            assert keeper.stdout
            made.append({**own, **{name: keeper.stdout.readline().rstrip("\n") for name in names}})
        yield made


@pytest.mark.parametrize("number", range(HERE))
def test_faults_here(number: int, tmp_path: Path, home: Path, clocks: list[dict[str, str]]) -> None:
    trial = Trial(f"{SEED}/here/{number}", tmp_path / "work", home)
    prepare(trial)
    trial.clocks = [{}] * 5 + clocks
    with judged(trial):
        pass_through(trial, trial.rng.randint(1, 5), faults.LOCAL)


@pytest.mark.parametrize("number", range(SPECIAL))
def test_a_disk_that_is_full_twice(number: int, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    with namespace(["-rm"], f"mount -t tmpfs -o size=4m none {small}") as holder:
        seen = Path(f"/proc/{holder}/root{small}")
        trial = Trial(f"{SEED}/full/{number}", tmp_path / "work", seen, small)
        prepare(trial)
        trial.prefix = enter(holder, "--user", "--preserve-credentials", "--mount")
        pauses = [trial.rng.uniform(0.3, 1.0) for _ in range(2)]

        def twice() -> None:
            for pause in pauses:
                time.sleep(pause)
                faults.fill(trial, seen)

        filler = threading.Thread(target=twice)
        with judged(trial):
            filler.start()
            pass_through(trial, 0, faults.LOCAL)
            filler.join()


@pytest.mark.parametrize("number", range(SPECIAL))
def test_pids_that_come_again_soon(number: int, tmp_path: Path, home: Path) -> None:
    trial = Trial(f"{SEED}/pids/{number}", tmp_path / "work", home)
    prepare(trial)
    name = f"bystander-{uuid.uuid4().hex}"
    narrow = "echo 420 > /proc/sys/kernel/pid_max || exit 1; " + faults.crowd(
        tmp_path / "fifo", name, [20, 305, 350]
    )
    before = Path("/proc/sys/kernel/pid_max").read_text()
    try:
        with namespace(["-rpf", "--mount-proc"], narrow) as init:
            trial.prefix = enter(init, "--user", "--preserve-credentials", "--pid", "--mount")
            with judged(trial, name):
                pass_through(trial, trial.rng.randint(2, 5), faults.LOCAL)
    finally:
        # Kernels before 6.14 have but one for all namespaces.
        if Path("/proc/sys/kernel/pid_max").read_text() != before:
            Path("/proc/sys/kernel/pid_max").write_text(before)


@pytest.mark.parametrize("number", range(SPECIAL))
def test_a_container_that_is_restarted(number: int, tmp_path: Path, home: Path) -> None:
    """Its state is kept, its processes are not, and others have their pids."""
    trial = Trial(f"{SEED}/restart/{number}", tmp_path / "work", home)
    prepare(trial)
    pids = {trial.rng.randrange(2, 60) for _ in range(10)}
    trial.now.add("restart")
    with namespace(["-pf", "--mount-proc"], ":") as init:
        trial.prefix = enter(init, "--pid", "--mount")
        with at_work(trial):
            time.sleep(trial.rng.uniform(0.4, 1.8))
            first = max(0, len(trial.begun()) - 1)
            hit = set(faults.step_processes(trial).values())
            pids |= {faults.inner(pid) for pid in started(trial.mark)}
            os.kill(init, signal.SIGKILL)
            assert trial.process is not None
            trial.process.wait(20)
    for number_hit in hit | set(trial.begun()[first:]):
        trial.hits[number_hit] += 1
    trial.story.append(f"restart, at {len(trial.begun())} begun")
    trial.prefix = []
    name = f"bystander-{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        if trial.rng.random() < 0.7:
            script = faults.crowd(tmp_path / "fifo", name, sorted(pids - {0, 1}))
            trial.prefix = enter(
                stack.enter_context(namespace(["-pf", "--mount-proc"], script)), "--pid", "--mount"
            )
        with judged(trial, name):
            pass_through(trial, trial.rng.randint(0, 2), faults.LOCAL)


@pytest.mark.parametrize("paths", ["apart", "shared"])
@pytest.mark.parametrize("number", range(SPECIAL))
def test_two_machines_with_one_home(number: int, paths: str, tmp_path: Path, home: Path) -> None:
    """Each has its own ledger; with shared paths the task files have the same name on both, too."""
    here = Trial(f"{SEED}/machine-{paths}/{number}/here", tmp_path / "work", home)
    there = Trial(f"{SEED}/machine-{paths}/{number}/there", tmp_path / "there", home)
    prepare(here)
    prepare(there)
    if paths == "shared":
        there.kinds, there.file = here.kinds, here.file
        shutil.copy(here.file, there.work)
    (identity := tmp_path / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    script = f"hostname elsewhere; [ ! -e /etc/machine-id ] || mount --bind {identity} /etc/machine-id"
    if paths == "shared":
        script += f"; mount --bind {there.work} {here.work}"
    with namespace(["-mu"], script) as holder, judged(here), judged(there):
        there.prefix = enter(holder, "--mount", "--uts")
        with ThreadPoolExecutor(2) as both:
            done = [both.submit(pass_through, trial, 2, faults.LOCAL) for trial in (here, there)]
            for one in done:
                one.result()


@pytest.mark.parametrize("number", range(NODES))
def test_faults_on_a_node(
    number: int, tmp_path: Path, make_sshd: Callable[..., Any], clocks: list[dict[str, str]]
) -> None:
    sshd = make_sshd()
    trial = Trial(f"{SEED}/node/{number}", tmp_path / "work", sshd.state)
    prepare(trial)
    plain = f"{sshd.env} {trial.mark}"

    def restart(clock: dict[str, str]) -> None:
        """The server, with this clock."""
        sshd.stop()
        sshd.env = " ".join([plain, *(f'{name}="{value}"' for name, value in clock.items())])
        sshd.start()
        trial.story.append(f"node's clock: {clock.get('FAKETIME', 'right')}")

    def between() -> None:
        if trial.rng.random() < 0.3:
            restart(trial.rng.choice([{}, *clocks]))

    trial.between = between
    restart(trial.rng.choice([{}, {}, *clocks]))
    with contextlib.ExitStack() as stack:
        port = sshd.port
        trial.cut = lambda: sshd.cut() > 0
        if trial.rng.random() < 0.5:
            relay = stack.enter_context(contextlib.closing(Relay(port, trial.rng.uniform(0.0, 0.004))))
            port = relay.port
            known = Path("~/.ssh/known_hosts").expanduser()
            known.write_text(known.read_text() + sshd.known_as(f"[127.0.0.1]:{port}"))

            def cut() -> bool:
                # What is swallowed before leaves half a frame on the other side.
                relay.swallow = True
                time.sleep(trial.rng.uniform(0.0, 0.02))
                relay.cut()
                relay.swallow = False
                return True

            trial.cut = cut
        trial.options = ["--on", f"ssh://{sshd.user}@127.0.0.1:{port}"]
        with judged(trial):
            pass_through(trial, trial.rng.randint(1, 5), faults.NODE)

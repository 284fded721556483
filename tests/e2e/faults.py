"""Faults for the survival trial, and what one trial knows of its run while they happen."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from taskrunner.engine.store import identity
from tests.helpers import command, completed, started

CUT_OFF = {"engine", "both", "step", "child", "garble", "full", "restart"}
"""The faults that may make a command end with 1."""


class Trial:
    """A task file, the ledger of its steps, the faults so far and the steps that they have hit.

    `work` and `home` are the folders as they are seen from here, `home_there` as the run sees the latter;
    `prefix` is what its commands are started through, as to enter a namespace.
    """

    def __init__(self, seed: str, work: Path, home: Path, home_there: Path | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.mark = f"TASKRUNNER_TRIAL={uuid.uuid4().hex}"
        self.work, self.home, self.home_there = work, home, home_there or home
        self.file = work / "tasks.json"
        self.options: list[str] = []
        self.prefix: list[str] = []
        self.kinds: list[str] = []
        self.clocks: list[dict[str, str]] = [{}]
        self.between: Callable[[], None] = lambda: None
        self.cut: Callable[[], bool] = lambda: False
        self.process: subprocess.Popen[bytes] | None = None
        self.output = work / "output"
        self.hits: Counter[int] = Counter()
        self.now: set[str] = set()
        self.before: set[str] = set()
        self.garble = ""
        self.cancelled = False
        self.story: list[str] = []
        self.wrong: list[str] = []

    def env(self, clock: dict[str, str]) -> dict[str, str]:
        name, value = self.mark.split("=")
        return {**os.environ, name: value, "TASKRUNNER_HOME": str(self.home_there), **clock}

    def ledger(self) -> list[tuple[str, int]]:
        """The whole lines so far: ("begin" or "end", step)."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.work / "ledger").read_text().split("\n")[:-1]
            return [(word, int(number)) for word, _, number in (line.partition(" ") for line in lines)]
        return []

    def begun(self) -> list[int]:
        return [number for word, number in self.ledger() if word == "begin"]

    def hit(self, number: int, sign: int = signal.SIGKILL) -> None:
        """Note that a fault has ended the step, and it may begin once more: not where it ignores that."""
        if sign != signal.SIGTERM or self.kinds[number] != "term":
            self.hits[number] += 1


def inner(pid: int) -> int:
    """The pid of a process as its own pid namespace counts."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def environment(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(word.split("=", 1) for word in words if "=" in word)
    return {}


def controller(trial: Trial) -> int | None:
    """The pid of the command that is under way; below nsenter where that has forked."""
    pid = trial.process.pid if trial.process is not None and trial.process.poll() is None else None
    with contextlib.suppress(OSError):
        if pid and Path(f"/proc/{pid}/comm").read_text() == "nsenter\n":
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else None
    return pid


def newest(folder: Path, pattern: str) -> list[Path]:
    """The files of this pattern, the last written first: a clock that is off makes names tell nothing."""
    times = {}
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            times[path] = path.stat().st_mtime_ns
    return sorted(times, key=lambda path: -times[path])


def engine(trial: Trial) -> tuple[int, str] | None:
    """The pid and the run of the engine at work, from its engine.json, whatever namespace it is in."""
    records = []
    for path in newest(trial.home, "runs/*/engine.json")[:4]:
        with contextlib.suppress(ValueError, OSError, AttributeError):
            known = json.loads(path.read_text())
            if known.get("boot") == identity.boot_id():
                records.append((known.get("start"), known.get("pid"), path.parent.name))
    for pid in started(trial.mark) if records else ():
        found = identity.stat(pid)
        for start, number, run in records:
            if found is not None and found[0] not in "ZX" and found[3] == start and inner(pid) == number:
                return pid, run
    return None


def step_processes(trial: Trial) -> dict[int, int]:
    """The living processes of steps: pid and the number of the step."""
    found = {}
    for pid in started(trial.mark):
        place = environment(pid).get("TASKRUNNER_TAG", "").partition("/")[2].partition(".")[0]
        if place.isdigit() and int(place) < len(trial.kinds):
            found[pid] = int(place)
    return found


def shells(trial: Trial) -> dict[int, int]:
    """The one process of each step that leads its session: its bash, or what that has become."""
    return {
        pid: number
        for pid, number in step_processes(trial).items()
        if (found := identity.stat(pid)) and found[2] == pid
    }


def send(pid: int, sign: int) -> bool:
    """Signal a process; whether it was alive."""
    with contextlib.suppress(ProcessLookupError):
        found = identity.stat(pid)
        if found is not None and found[0] not in "ZX":
            os.kill(pid, sign)
            return True
    return False


def kill_controller(trial: Trial) -> bool:
    pid = controller(trial)
    return pid is not None and send(pid, signal.SIGKILL)


def kill_engine(trial: Trial) -> bool:
    found = engine(trial)
    return found is not None and send(found[0], signal.SIGKILL)


def kill_both(trial: Trial) -> bool:
    kills = [kill_controller, kill_engine]
    trial.rng.shuffle(kills)
    if engine(trial) is None:
        return False
    return sum(kill(trial) for kill in kills) > 0


def signal_shell(trial: Trial) -> bool:
    sign = trial.rng.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGKILL])
    return _signal(trial, shells(trial), sign)


def signal_child(trial: Trial) -> bool:
    leaders = shells(trial)
    below = {pid: number for pid, number in step_processes(trial).items() if pid not in leaders}
    return _signal(trial, below, trial.rng.choice([signal.SIGTERM, signal.SIGKILL]), child=True)


def _signal(trial: Trial, among: dict[int, int], sign: signal.Signals, child: bool = False) -> bool:
    if not among:
        return False
    pid = trial.rng.choice(sorted(among))
    number = among[pid]
    if not send(pid, sign):
        return False
    # A child's end can fail its step, also one that hears the signal itself.
    trial.hit(number, signal.SIGKILL if child else sign)
    trial.story.append(f"  {sign.name} to step {number} ({trial.kinds[number]}{', child' if child else ''})")
    return True


def stop_for_a_while(trial: Trial) -> bool:
    found, leaders = engine(trial), sorted(shells(trial))
    if found is not None and (not leaders or trial.rng.random() < 0.5):
        leaders = [found[0]]
    if not leaders:
        return False
    pid = trial.rng.choice(leaders)
    before = identity.stat(pid)
    if before is None or not send(pid, signal.SIGSTOP):
        return False
    time.sleep(trial.rng.uniform(0.05, 0.3))
    after = identity.stat(pid)
    if after is not None and after[3] == before[3]:
        send(pid, signal.SIGCONT)
    return True


def cancel(trial: Trial) -> bool:
    """Ask the run to stop: by Ctrl-C to a command that shows the run already, or by `taskrunner cancel`."""
    found, pid = engine(trial), controller(trial)
    if found is None:
        return False
    if pid is not None and trial.output.stat().st_size and trial.rng.random() < 0.5:
        trial.cancelled = send(pid, signal.SIGINT)
        return trial.cancelled
    line = [*trial.prefix, *command("cancel", found[1], *trial.options)]
    done = completed(line, env=trial.env({}), stdin=subprocess.DEVNULL)
    said = done.stdout + done.stderr
    if "Traceback" in said:
        trial.wrong.append("traceback of cancel: " + said[-1500:])
    trial.cancelled = trial.cancelled or "stopping run" in said
    return "stopping run" in said


def cancel_at_an_end(trial: Trial) -> bool:
    """Ask the run to stop at once when a step says that it has ended; rather one that ignores the signal."""
    choosy = trial.rng.random() < 0.7
    found, target = engine(trial), controller(trial)
    if found is None or target is None or not trial.output.stat().st_size:
        return False
    if trial.rng.random() < 0.5:
        target = found[0]
    seen = len(trial.ledger())
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline and controller(trial) is not None:
        for word, number in trial.ledger()[seen:]:
            if word == "end" and (not choosy or trial.kinds[number] == "term"):
                trial.story.append(f"  after the end of step {number} ({trial.kinds[number]})")
                trial.cancelled = send(target, signal.SIGTERM if target == found[0] else signal.SIGINT)
                return trial.cancelled
        time.sleep(0.001)
    return False


def kill_and_garble(trial: Trial) -> bool:
    """Kill the engine; when nothing runs any more, `garble` spoils a file."""
    found = engine(trial)
    if found is None or not send(found[0], signal.SIGKILL):
        return False
    trial.garble = found[1]
    return True


Fault = Callable[[Trial], bool]
LOCAL: dict[str, tuple[Fault, int]] = {
    "controller": (kill_controller, 4),
    "engine": (kill_engine, 5),
    "both": (kill_both, 3),
    "step": (signal_shell, 4),
    "child": (signal_child, 2),
    "stop": (stop_for_a_while, 2),
    "cancel": (cancel, 2),
    "cancel-end": (cancel_at_an_end, 3),
    "garble": (kill_and_garble, 3),
}
"""What can happen: a function that says whether it has, and its weight."""
NODE: dict[str, tuple[Fault, int]] = {
    **LOCAL,
    "cut": (lambda trial: trial.cut(), 5),
    "garble": (kill_and_garble, 1),
}


def garble(trial: Trial) -> str:
    """Spoil one file of the state of the run that was killed, while nothing runs; says which, and how."""
    rng, run = trial.rng, trial.home / "runs" / trial.garble
    trial.garble = ""
    paths = [*newest(trial.home, "locks/*")[:1], run / "engine.json", run / "events.jsonl"]
    path = rng.choice([path for path in paths if path.is_file()])
    data = path.read_bytes()
    # Of the events only the tail: what a crash can leave half written.
    keep = max(0, len(data) - rng.randrange(1, 200)) if path.name == "events.jsonl" else 0
    how = rng.choice(["zeros", "cut", "random", *(["shape"] * 2 if path.name != "engine.json" else [])])
    if how == "shape":
        wrong = """[] 7 null "x" {"type":5} {"type":"step.started"} {"type":"step.finished","index":"x"} {"time":[]}""".split()
        path.write_bytes(data + rng.choice(wrong).encode() + b"\n")
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(keep, len(data) + 1)])
    else:
        tail = bytes(len(data) - keep) if how == "zeros" else rng.randbytes(len(data) - keep)
        path.write_bytes(data[:keep] + tail)
    return f"{path.parent.name}/{path.name}: {how}"


def fill(trial: Trial, folder: Path) -> None:
    """Fill the disk that the folder is on, let the run feel it, and empty it again."""
    trial.now.add("full")
    trial.story.append("full disk")
    first = max(0, len(trial.begun()) - 1)
    with contextlib.suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    time.sleep(trial.rng.uniform(0.05, 0.4))
    (folder / "fill").unlink()
    time.sleep(0.05)
    trial.now.add("full")
    for number in set(trial.begun()[first:]):
        trial.hits[number] += 1


@contextlib.contextmanager
def namespace(options: list[str], script: str, said: str = "ready") -> Iterator[int]:
    """A process in namespaces of its own that runs a script and stays; its pid here. All in it ends with it."""
    env = {name: value for name, value in os.environ.items() if name != "TASKRUNNER_HOME"}
    loop = f"{script}\necho {said}; while :; do sleep 3600 & wait; done"
    process = subprocess.Popen(
        ["unshare", *options, "bash", "-c", loop], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line.decode().strip() == said, line
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        forked = Path(f"/proc/{process.pid}/comm").read_text() == "unshare\n"
        yield int(children[0]) if forked else process.pid
    finally:
        below = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for pid in [process.pid, *(below.read_text().split() if below.exists() else ())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        process.wait()
        process.stdout.close()


def enter(pid: int, *options: str) -> list[str]:
    """The words before a command that is to run in a namespace."""
    return ["nsenter", "--target", str(pid), "--wd=.", *options, "--"]


LOOKS = ["bash", "--norc", "--noprofile", "-c", "read -r x; :", "s3"]
"""A process with the looks of a step's bash, that waits for a line; one more argument tells it apart."""


def crowd(fifo: Path, name: str, pids: list[int]) -> str:
    """The script that starts bystanders at these pids of its namespace."""
    os.mkfifo(fifo)
    look = " ".join(map(shlex.quote, [*LOOKS, name]))
    last = "/proc/sys/kernel/ns_last_pid"
    return f"exec 8<>{fifo}; for p in {' '.join(map(str, pids))}; do echo $((p-1)) > {last}; setsid {look} <&8 & done"


def bystanders(name: str) -> dict[int, int]:
    """The processes with this name among their arguments: pid and start time."""
    found = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and name.encode() in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                known = identity.stat(int(entry))
                if known is not None and known[0] not in "ZX":
                    found[int(entry)] = known[3]
    return found


def gone(trial: Trial, which: Callable[[Trial], object], seconds: float = 15.0) -> bool:
    """Wait until there is no such process."""
    deadline = time.monotonic() + seconds
    while which(trial):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def judge(trial: Trial, status: int, said: str) -> str:
    """What is wrong with an exit status; "" when nothing is."""
    recent = trial.now | trial.before
    if "Traceback" in said:
        return "traceback"
    right = {
        0: len({number for word, number in trial.ledger() if word == "end"}) == len(trial.kinds),
        1: bool(recent & CUT_OFF)
        and any(word in said for word in ("was interrupted", "[FAIL]", "No space left")),
        2: "full" in recent,
        3: "cut" in trial.now and "[RUN]" not in said,  # while it connected; later, it connects anew
        4: "shared" in trial.seed,
        130: bool(recent & {"cancel", "cancel-end"}),
        -signal.SIGKILL: bool(trial.now & {"controller", "both", "restart"}),
    }
    return "" if right.get(status) else f"exit status {status} after {sorted(recent)}"

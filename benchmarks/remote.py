"""SSH: one node, a fleet, and bytes; against ssh, scp, tar, Ansible and pyinfra on the same sshd.

The sshd is a real one on loopback, with a configuration, keys and a home of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.relay import Relay
from tests.sshd import Sshd, keygen

TASKRUNNER = str(Path(sys.executable).parent / "taskrunner")
RUNNER = str(Path(sys.executable).parent / "runner")
STEPS = 100
ANSIBLE_STEPS = 10
FLEET = 200
FLEET_STEPS = 20
FILES = 1000
DELAY = 0.02
GUARD, COMMAND = "false", "true"


class Cost(NamedTuple):
    """Of a whole process: wall and processor time in seconds, its own most resident MB."""

    wall: float
    processor: float
    resident: float


def cost(argv: Sequence[str], env: Mapping[str, str], stdin: Path | None = None) -> Cost:
    """What a command costs, with the children that it waits for."""
    with contextlib.ExitStack() as files:
        source = files.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
        errors = files.enter_context(open("/dev/shm/benchmark-errors", "w+b"))
        began = time.perf_counter()
        process = subprocess.Popen(
            argv, env={**os.environ, **env}, stdin=source, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{argv} failed: {errors.read().decode(errors='replace')[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def median(found: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*found, strict=True)))


class Bench(NamedTuple):
    """A server, the client's home, and how ssh is told of both."""

    server: Sshd
    env: Mapping[str, str]
    folder: Path

    @property
    def ssh(self) -> list[str]:
        return ["ssh", "-F", str(self.folder / "ssh_config"), "node"]


@contextlib.contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """A running server for addresses of 127.0.0.0/8, and a client that knows it."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    key = keygen(home / ".ssh" / "id_ed25519")
    server = Sshd(folder / "sshd", "MaxStartups 1000", "MaxSessions 100", address="0.0.0.0")
    server.authorize(key)
    (home / ".ssh" / "known_hosts").write_text(server.known_as("*"))
    (folder / "ssh_config").write_text(
        f"Host node\n  HostName 127.0.0.1\nHost *\n  Port {server.port}\n  User {server.user}\n"
        f"  IdentityFile {key}\n  UserKnownHostsFile {home}/.ssh/known_hosts\n"
    )
    try:
        yield Bench(server.start(), {"HOME": str(home), "TASKRUNNER_HOME": str(folder / "state")}, folder)
    finally:
        server.stop()


def write_steps(path: Path, count: int, guard: str | None = GUARD) -> Path:
    step = {"skip_if": guard} if guard else {}
    tasks = [{"id": f"s{number:03}", **step, "commands": [COMMAND]} for number in range(count)]
    path.write_text(json.dumps({"name": path.stem, "tasks": tasks}))
    return path


def ssh(folder: Path, peers: Path) -> None:
    """100 guarded no-op steps on one node, from process start to exit; then with a delay."""
    with bench(folder) as at:
        ours = [TASKRUNNER, str(write_steps(folder / "steps.json", STEPS)), "--on", at.server.target]
        script = folder / "steps.sh"
        script.write_text("set -e\n" + f"bash -c {GUARD} || bash -c {COMMAND}\n" * STEPS)
        runs: dict[str, list[Cost]] = {}
        for _ in range(8):
            for name, argv, stdin in (("taskrunner", ours, None), ("ssh", [*at.ssh, "bash", "-s"], script)):
                runs.setdefault(name, []).append(cost(argv, at.env, stdin))
        for _ in range(2):
            runs.setdefault("ansible", []).append(
                cost(*ansible(at, peers, ["127.0.0.1"], ANSIBLE_STEPS, True))
            )
            runs.setdefault("pyinfra", []).append(cost(*pyinfra(at, peers, STEPS)))
        found = {name: median(values[1:]) for name, values in runs.items()}
        a_step = {
            name: value.wall / (ANSIBLE_STEPS if name == "ansible" else STEPS)
            for name, value in found.items()
        }
        rows = {
            "taskrunner": ("taskrunner --on ssh://...", ""),
            "ssh": ("ssh host bash -s < script", "at most 1.5"),
            "pyinfra": ("pyinfra, fact + shell", "at most 0.1"),
            "ansible": ("ansible-playbook, guard + shell, pipelining", "at most 0.025"),
        }
        print(
            "| 100 guarded no-op steps over SSH | ms a step | taskrunner / it | target |\n|---|---|---|---|"
        )
        for name, (title, wanted) in rows.items():
            print(
                f"| {title} | {a_step[name] * 1e3:.2f} | {a_step['taskrunner'] / a_step[name]:.3g} | {wanted} |"
            )
        print()
        delayed(at, ours)


def delayed(at: Bench, ours: list[str]) -> None:
    """The same through a relay that is 20 ms late each way."""
    print(f"| the same, {DELAY * 1e3:.0f} ms each way | s | more than without | target |\n|---|---|---|---|")
    plain, late = Relay(at.server.port), Relay(at.server.port, DELAY)
    for name, argv in (("taskrunner", ours), ("ssh host bash -s < script", [*at.ssh, "bash", "-s"])):
        times: dict[int, list[float]] = {}
        for _ in range(4):
            for relay in (plain, late):
                target = [word.replace(str(at.server.port), str(relay.port)) for word in argv]
                if target[0] == "ssh":
                    target[1:1] = ["-p", str(relay.port)]
                stdin = None if argv is ours else at.folder / "steps.sh"
                times.setdefault(relay.port, []).append(cost(target, at.env, stdin).wall)
        took, base = (statistics.median(times[relay.port][1:]) for relay in (late, plain))
        wanted = "under 1 s" if argv is ours else ""
        print(f"| {name} | {took:.2f} | {took - base:.2f} | {wanted} |")
    print()
    plain.close()
    late.close()


def fleet(folder: Path, peers: Path) -> None:
    """200 nodes, 20 steps each; addresses of one sshd, each with a state folder of its own."""
    with bench(folder) as at:
        hosts = [f"127.0.{number // 200 + 1}.{number % 200 + 1}" for number in range(FLEET)]
        lines = [f'[defaults]\nuser = "{at.server.user}"\nport = {at.server.port}\n']
        for number, host in enumerate(hosts):
            lines.append(f'[nodes.n{number:03}]\naddress = "{host}"\nstate = "{folder}/nodes/{number}"\n')
        (folder / "nodes.toml").write_text("\n".join(lines))
        path = write_steps(folder / "fleet.json", FLEET_STEPS, None)
        argv = [RUNNER, "run-all", str(path), "--nodes", str(folder / "nodes.toml"), "--reset"]
        ours = [cost(argv, at.env) for _ in range(3)]
        theirs = cost(*ansible(at, peers, hosts, FLEET_STEPS, False))
        first, again = ours[0], median(ours[1:])
        print(
            f"| {FLEET} nodes, {FLEET_STEPS} steps each | wall s | processor s | ratio of processor time"
            " | most resident MB | target |\n|---|---|---|---|---|---|"
        )
        for name, value in (("runner, the engine not there yet", first), ("runner", again)):
            ratio = value.processor / theirs.processor
            print(
                f"| {name} | {value.wall:.1f} | {value.processor:.1f} | {ratio:.3f} | {value.resident:.0f}"
                " | at most 0.1, under 300 MB |"
            )
        print(
            f"| ansible-playbook, forks=50, pipelining | {theirs.wall:.1f} | {theirs.processor:.1f} | 1 | | |"
        )
        print()


def transfer(folder: Path, peers: Path) -> None:
    """A log of 1 GB that comes here whole, and 1,000 small files that go there."""
    with bench(folder) as at:
        (folder / "ours").mkdir()
        line = b"%06d INFO request completed: ttft=0.123 tpot=0.0123 tokens=1024 throughput=4711\n"
        with (folder / "big.log").open("wb") as file:
            while file.tell() < 1_000_000_000:
                file.write(b"".join(line % number for number in range(20_000)))
        path = folder / "log.json"
        path.write_text(
            json.dumps({"tasks": [{"id": "a", "skip_if": "false", "commands": [f"cat {folder}/big.log"]}]})
        )
        scp = ["scp", "-q", "-F", str(folder / "ssh_config")]
        times: dict[str, list[float]] = {}
        for _ in range(4):
            took = time.perf_counter()
            with (folder / "ours.log").open("wb") as out:
                subprocess.run(
                    [TASKRUNNER, str(path), "--on", at.server.target, "-v"],
                    stdout=out,
                    env={**os.environ, **at.env},
                    check=True,
                )
            times.setdefault("log", []).append(time.perf_counter() - took)
            shutil.rmtree(at.server.state / "runs")
            times.setdefault("scp", []).append(
                cost([*scp, f"node:{folder}/big.log", str(folder / "theirs.log")], at.env).wall
            )
            for name in ("ours.log", "theirs.log"):
                (folder / name).unlink()
        log, base = (statistics.median(times[name][1:]) for name in ("log", "scp"))
        print("| 1 GB from a node, to a file in memory | s | speed against scp | target |\n|---|---|---|---|")
        print(
            f"| taskrunner -v: the step prints it, and all of it is here | {log:.2f} | {base / log:.2f} | at least 0.5 |"
        )
        print(f"| scp | {base:.2f} | 1 | |\n")
        files(at)


def files(at: Bench) -> None:
    source = at.folder / "files"
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:04}.json").write_text(
            json.dumps({"number": number, "text": "x" * (number * 7 % 4000)})
        )
    (at.folder / "nodes.toml").write_text(
        f'[nodes.n]\naddress = "127.0.0.1"\nport = {at.server.port}\nuser = "{at.server.user}"\n'
    )
    put = [RUNNER, "put", "n", str(source), "put", "--nodes", str(at.folder / "nodes.toml")]
    there = at.server.home / "put"
    tar = [
        "bash",
        "-c",
        f"tar -C {source} -cf - . | {' '.join(at.ssh)} 'mkdir -p {at.folder}/tar && tar -C {at.folder}/tar -xf -'",
    ]
    times: dict[str, list[float]] = {}
    for _ in range(6):
        for name, argv in (("put", put), ("again", put), ("tar", tar)):
            times.setdefault(name, []).append(cost(argv, at.env).wall)
        shutil.rmtree(there)
        shutil.rmtree(at.folder / "tar")
    put_took, again, base = (statistics.median(times[name][1:]) for name in ("put", "again", "tar"))
    print(f"| {FILES} small files to a node | s | taskrunner / it | target |\n|---|---|---|---|")
    print(f"| runner put | {put_took:.2f} | 1 | |")
    print(f"| tar over ssh | {base:.2f} | {put_took / base:.2f} | at most 2 |")
    print(f"| runner put, all there already | {again:.2f} | | |\n")


def ansible(
    at: Bench, peers: Path, hosts: Sequence[str], steps: int, guarded: bool
) -> tuple[list[str], Mapping[str, str]]:
    """A playbook (as JSON, which is YAML) for these hosts."""
    bash = {"executable": "/bin/bash"}
    tasks: list[dict[str, object]] = []
    for number in range(steps):
        if guarded:
            tasks.append(
                {
                    "name": f"guard {number}",
                    "ansible.builtin.shell": {"cmd": GUARD, **bash},
                    "register": "guard",
                    "changed_when": False,
                    "failed_when": False,
                }
            )
        step: dict[str, object] = {
            "name": f"step {number}",
            "ansible.builtin.shell": {"cmd": COMMAND, **bash},
        }
        tasks.append({**step, "when": "guard.rc != 0"} if guarded else step)
    playbook = at.folder / "playbook.yml"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    config = at.folder / "ansible.cfg"
    config.write_text("[defaults]\nforks = 50\n[ssh_connection]\npipelining = True\n")
    inventory = at.folder / "inventory.ini"
    inventory.write_text("\n".join(hosts) + "\n")
    arguments = f"-F {at.folder}/ssh_config -o ControlMaster=auto -o ControlPersist=60s"
    argv = [
        str(peers / "ansible-playbook"),
        "-i",
        str(inventory),
        "--ssh-common-args",
        arguments,
        "-e",
        f"ansible_python_interpreter={sys.executable}",
        str(playbook),
    ]
    sockets = at.folder / "cp"
    return argv, {
        **at.env,
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_HOME": str(at.folder / "ansible"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
    }


def pyinfra(at: Bench, peers: Path, steps: int) -> tuple[list[str], Mapping[str, str]]:
    """A deploy: a fact as the guard, then a shell operation."""
    deploy = at.folder / "deploy.py"
    deploy.write_text(
        "from pyinfra import host\nfrom pyinfra.facts.server import Command\nfrom pyinfra.operations import server\n"
        f"for number in range({steps}):\n"
        f"    if host.get_fact(Command, command='if ({GUARD}); then echo skip; else echo run; fi; : %d' % number) == 'run':\n"
        f"        server.shell(name='step %d' % number, commands=['{COMMAND}'])\n"
    )
    argv = [
        str(peers / "pyinfra"),
        "-y",
        "--ssh-port",
        str(at.server.port),
        "--ssh-user",
        at.server.user,
        "--ssh-key",
        str(at.folder / "home/.ssh/id_ed25519"),
        "127.0.0.1",
        str(deploy),
    ]
    return argv, at.env

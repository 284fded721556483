"""Peer set-ups for the benchmark "N guarded no-op steps, local".

Every peer runs the same plan: for each step a guard (a shell command whose
success means "nothing to do, skip") and, because the guard fails, one command.
Steps run strictly one after another.

`build` writes the files of all peers and returns how to start each one; it runs
nothing. Every argv can be repeated as it stands: no peer carries "done" records
from one run to the next.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ANSIBLE_MAX_STEPS = 10  # one guarded step takes most of a second


class Peer(NamedTuple):
    """One way to run the plan."""

    name: str
    argv: list[str]
    steps_divisor: int
    """Steps in this peer's plan: wall time / steps_divisor = time per step."""
    env: Mapping[str, str]
    """Variables to set on top of the caller's environment."""


class Plan(NamedTuple):
    """What every peer has to run."""

    steps: int
    guard: str
    command: str


def guarded(count: int) -> dict[str, object]:
    """The plan as a task file of ours."""
    tasks = [
        {"id": f"{i:04d}", "name": f"Step {i}", "skip_if": "false", "commands": ["true"]}
        for i in range(count)
    ]
    return {"name": "Benchmark", "tasks": tasks}


def build(
    folder: Path,
    steps: int,
    venv_bin: Path,
    *,
    guard: str = "false",
    command: str = "true",
) -> list[Peer]:
    """Write the files of all peers below `folder` and return the peers.

    `venv_bin` is the bin folder of a virtual environment with
    requirements-peers.txt installed. `guard` and `command` are there for checks
    that count how often each one ran; they must not contain `{{`.
    """
    folder, venv_bin = folder.absolute(), venv_bin.absolute()
    plan = Plan(steps, guard, command)
    return [
        _bash_script(_subfolder(folder, "bash_script"), plan),
        _python_loop(_subfolder(folder, "python_loop"), plan, venv_bin),
        _bash_coprocess(_subfolder(folder, "bash_coprocess"), plan, venv_bin),
        _go_task(_subfolder(folder, "go_task"), plan, venv_bin),
        _go_task_bash(_subfolder(folder, "go_task_bash"), plan, venv_bin),
        _doit(_subfolder(folder, "doit"), plan, venv_bin),
        _pyinfra(_subfolder(folder, "pyinfra"), plan, venv_bin),
        _ansible(_subfolder(folder, "ansible"), plan, venv_bin),
        _bash_engine(_subfolder(folder, "bash_engine"), plan),
    ]


def _subfolder(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def _write_json(path: Path, value: object) -> str:
    return _write(path, json.dumps(value, indent=2) + "\n")


def _bash_c(command: str) -> str:
    return f"bash -c {shlex.quote(command)}"


def _bash_script(folder: Path, plan: Plan) -> Peer:
    """Write a script with one `bash -c` per guard and one per command."""
    step = f"{_bash_c(plan.guard)} || {_bash_c(plan.command)}\n"
    script = _write(folder / "plan.sh", "set -e\n" + step * plan.steps)
    return Peer("bash script (bash -c x2)", ["bash", script], plan.steps, {})


PYTHON_LOOP = """\
import subprocess

for _ in range({steps}):
    if subprocess.run(["bash", "-c", {guard!r}]).returncode != 0:
        subprocess.run(["bash", "-c", {command!r}], check=True)
"""


def _python_loop(folder: Path, plan: Plan, venv_bin: Path) -> Peer:
    """Write a Python loop with two subprocess.run calls per step."""
    script = _write(folder / "loop.py", PYTHON_LOOP.format(**plan._asdict()))
    argv = [str(venv_bin / "python"), script]
    return Peer("python subprocess.run x2", argv, plan.steps, {})


# The exit status travels on its own pipe, which the commands do not inherit; a
# command that prints, reads stdin or calls `exit` cannot disturb the protocol.
BASH_COPROCESS = """\
import os
import shlex
import subprocess
import sys

status_read, status_write = os.pipe()
bash = subprocess.Popen(
    ["bash", "--noprofile", "--norc"],
    stdin=subprocess.PIPE,
    pass_fds=[status_write],
    text=True,
)
os.close(status_write)
statuses = open(status_read)


def run(command):
    quoted = shlex.quote(command)
    bash.stdin.write(
        f"( eval {{quoted}} ) </dev/null {{status_write}}>&-\\n"
        f"echo $? >&{{status_write}}\\n"
    )
    bash.stdin.flush()
    return int(statuses.readline())


for _ in range({steps}):
    if run({guard!r}) != 0 and run({command!r}) != 0:
        sys.exit("step failed")
bash.stdin.close()
sys.exit(bash.wait())
"""


def _bash_coprocess(folder: Path, plan: Plan, venv_bin: Path) -> Peer:
    """Write a Python driver of one bash, which forks a subshell per command."""
    script = _write(folder / "coprocess.py", BASH_COPROCESS.format(**plan._asdict()))
    argv = [str(venv_bin / "python"), script]
    return Peer("bash co-process, subshells", argv, plan.steps, {})


def _write_taskfile(folder: Path, steps: int, guard: str, command: str) -> None:
    """Write a Taskfile (as JSON, which is YAML) of tasks called in sequence."""
    names = [f"step{number:04}" for number in range(steps)]
    tasks: dict[str, object] = {name: {"status": [guard], "cmds": [command]} for name in names}
    tasks["default"] = {"cmds": [{"task": name} for name in names]}
    _write_json(folder / "Taskfile.yml", {"version": "3", "tasks": tasks})


def _go_task(folder: Path, plan: Plan, venv_bin: Path) -> Peer:
    """Let go-task interpret guards and commands in its own process."""
    _write_taskfile(folder, plan.steps, plan.guard, plan.command)
    argv = [str(venv_bin / "task"), "-d", str(folder)]
    return Peer("go-task, built-in shell", argv, plan.steps, {})


def _go_task_bash(folder: Path, plan: Plan, venv_bin: Path) -> Peer:
    """Let go-task start one `bash -c` per guard and one per command."""
    _write_taskfile(folder, plan.steps, _bash_c(plan.guard), _bash_c(plan.command))
    argv = [str(venv_bin / "task"), "-d", str(folder)]
    return Peer("go-task, bash -c x2", argv, plan.steps, {})


DODO = """\
DOIT_CONFIG = {{"dep_file": {dep_file!r}}}


def task_step():
    for number in range({steps}):
        yield {{
            "name": f"{{number:04}}",
            "uptodate": [{guard!r}],
            "actions": [{command!r}],
        }}
"""


def _doit(folder: Path, plan: Plan, venv_bin: Path) -> Peer:
    """Write a dodo file; doit runs both strings with `/bin/sh -c`."""
    dep_file = str(folder / "doit.db")
    dodo = _write(folder / "dodo.py", DODO.format(dep_file=dep_file, **plan._asdict()))
    return Peer("doit", [str(venv_bin / "doit"), "-f", dodo], plan.steps, {})


# A fact whose command fails fails the host, so the guard's result is printed.
PYINFRA_DEPLOY = """\
from pyinfra import config, host
from pyinfra.facts.server import Command
from pyinfra.operations import server

config.SHELL = "bash"

for number in range({steps}):
    if host.get_fact(Command, {fact!r}) != "skip":
        server.shell(name=f"step {{number:04}}", commands=[{command!r}])
"""


def _pyinfra(folder: Path, plan: Plan, venv_bin: Path) -> Peer:
    """Write a pyinfra deploy: a fact as the guard, then a shell operation."""
    fact = f"if ({plan.guard}); then echo skip; else echo run; fi"
    text = PYINFRA_DEPLOY.format(fact=fact, steps=plan.steps, command=plan.command)
    deploy = _write(folder / "deploy.py", text)
    argv = [str(venv_bin / "pyinfra"), "-y", "@local", deploy]
    return Peer("pyinfra @local, fact + shell", argv, plan.steps, {})


def _ansible(folder: Path, plan: Plan, venv_bin: Path) -> Peer:
    """Write a playbook (as JSON, which is YAML): a guard task, then a shell task."""
    steps = min(plan.steps, ANSIBLE_MAX_STEPS)
    bash = {"executable": "/bin/bash"}
    tasks: list[dict[str, object]] = []
    for number in range(steps):
        tasks += [
            {
                "name": f"guard {number:04}",
                "ansible.builtin.shell": {"cmd": plan.guard, **bash},
                "register": "guard",
                "changed_when": False,
                "failed_when": False,
            },
            {
                "name": f"step {number:04}",
                "ansible.builtin.shell": {"cmd": plan.command, **bash},
                "when": "guard.rc != 0",
            },
        ]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    playbook = _write_json(folder / "playbook.yml", [play])
    config = _write(folder / "ansible.cfg", "[defaults]\n")
    argv = [str(venv_bin / "ansible-playbook"), "-i", "localhost,", "-c", "local"]
    argv += ["-e", f"ansible_python_interpreter={venv_bin / 'python'}", playbook]
    env = {
        "ANSIBLE_CONFIG": config,
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "home" / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "home" / "tmp"),
    }
    return Peer("ansible-playbook, guard + shell", argv, steps, env)


# Ten jq processes per step: six fields, a state query and three state updates.
BASH_ENGINE = r"""#!/usr/bin/env bash
# Usage: engine.sh PLAN.json STATE.json [--from STEP_ID] [--fresh]
set -uo pipefail

plan=$1 state=$2
shift 2
from="" fresh=false
while (($#)); do
    case $1 in
        --from) from=$2; shift 2 ;;
        --fresh) fresh=true; shift ;;
        *) echo "unknown option: $1" >&2; exit 2 ;;
    esac
done
if $fresh || [[ ! -f $state ]]; then
    echo '{"current": null, "completed": 0, "steps": {}}' >"$state"
fi

declare -A variables=()
while IFS='=' read -r name value; do
    variables[$name]=$value
done < <(jq -r '.variables // {} | to_entries[] | "\(.key)=\(.value)"' "$plan")

step_field() { jq -r --argjson i "$1" ".steps[\$i].$2 // empty" "$plan"; }

update_state() { # FILTER STEP_ID
    jq --arg id "$2" "$1" "$state" >"$state.tmp" && mv "$state.tmp" "$state"
}

substitute() { # TEXT, into $substituted
    substituted=$1
    local name
    for name in "${!variables[@]}"; do
        substituted=${substituted//"{{$name}}"/"${variables[$name]}"}
    done
}

count=$(jq '.steps | length' "$plan")
for ((i = 0; i < count; i++)); do
    id=$(step_field "$i" id)
    title=$(step_field "$i" name)
    skip_if=$(step_field "$i" skip_if)
    keep_going=$(step_field "$i" continue_on_error)
    retries=$(step_field "$i" retries)
    if [[ -n $from && $id != "$from" ]]; then continue; fi
    from=""
    status=$(jq -r --arg id "$id" '.steps[$id].status // "pending"' "$state")
    if [[ $status == success ]]; then echo "[$id] already completed"; continue; fi
    echo "[$id] $title"
    update_state '.current = $id' "$id"
    update_state '.steps[$id] = {status: "running", started: now}' "$id"
    commands=$(step_field "$i" 'commands[]')

    result=success
    substitute "$skip_if"
    if [[ -n $skip_if ]] && eval "$substituted"; then
        echo "[$id] skipped"
    else
        while IFS= read -r command; do
            substitute "$command"
            for ((try = 0; try <= ${retries:-0}; try++)); do
                if eval "$substituted"; then continue 2; fi
            done
            result=failed
            break
        done <<<"$commands"
    fi
    finished="{status: \"$result\", ended: now}"
    update_state ".steps[\$id] += $finished | .completed += 1" "$id"
    if [[ $result == failed && $keep_going != true ]]; then exit 1; fi
done
"""


def _bash_engine(folder: Path, plan: Plan) -> Peer:
    """Write a runner in the jq + eval style: JSON plan, JSON state file.

    The guard and the command hold a variable each, as real plans do.
    """
    steps = [
        {
            "id": f"step{number:04}",
            "name": f"Step {number}",
            "skip_if": "{{GUARD}}",
            "commands": ["{{COMMAND}}"],
        }
        for number in range(plan.steps)
    ]
    variables = {"GUARD": plan.guard, "COMMAND": plan.command}
    tasks = _write_json(folder / "plan.json", {"variables": variables, "steps": steps})
    engine = _write(folder / "engine.sh", BASH_ENGINE)
    argv = ["bash", engine, tasks, str(folder / "state.json"), "--fresh"]
    return Peer("bash engine (jq + eval)", argv, plan.steps, {})

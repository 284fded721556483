"""Slurm's own commands, asked for one thing each."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from taskrunner.errors import StateError, UsageError

PATIENCE_S = 30.0
UNKNOWN = "Invalid job id"
"""What Slurm says of a job that it has forgotten, which it does minutes after its end."""


def program(name: str) -> str:
    """The path of one of Slurm's commands. Raises UsageError."""
    path = shutil.which(name)
    if path is None:
        raise UsageError(f"there is no {name} on this machine", "use a login node of the cluster")
    return path


def ask(words: Sequence[str], environment: Mapping[str, str] | None = None, missing: str = "") -> str:
    """What a command prints; "" when it fails with the words `missing`. Raises UsageError, StateError."""
    program(words[0])
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StateError(f"{words[0]} does not answer within {PATIENCE_S:.0f} s") from error
    if done.returncode and not (missing and missing in done.stderr):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise StateError(said[-1] if said else f"{words[0]} exits with {done.returncode}")
    return done.stdout.strip()


def state(job: str) -> str:
    """What Slurm calls the state of a job; "" when it has forgotten it."""
    return placed(job)[0]


def placed(job: str) -> tuple[str, list[str]]:
    """The state of a job, and the names of its nodes."""
    told = ask(["squeue", "--noheader", "--jobs", job, "--format", "%T %N"], missing=UNKNOWN)
    found, _, packed = told.partition(" ")
    return found, ask(["scontrol", "show", "hostnames", packed]).split() if packed.strip() else []


def devices(job: str) -> str:
    """The devices that a job has on each of its nodes, such as `gpu:8`. A step gets those that the job has
    asked for, but not those that it has because its nodes are its own.
    """
    told = ask(["scontrol", "--details", "show", "job", job], missing=UNKNOWN)
    found = re.search(r"\sGRES=(\S+)", told)
    return re.sub(r"\([^)]*\)", "", found[1]) if found else ""

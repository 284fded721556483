"""Slurm: a sweep as batch jobs, one for each pair of nodes, that resume after whatever has ended them.

A job that is requeued is an ordinary resume: guards by content skip what is measured. The commands of a sweep
are the foreground of steps of the job, and end its runs when Slurm sends SIGTERM: before a preemption, on
`scancel`, and from the job itself before its time limit (SIGUSR1), after which it requeues itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskrunner.errors import UsageError
from taskrunner.transports.slurm import client

STOP_S = 120
"""Seconds before the time limit at which a job stops its servers; Slurm may say so up to a minute early."""
TRIES = 60
WORD = re.compile(r"[\w.,:=@+-]*", re.ASCII)
LIVE = frozenset(
    "PENDING RUNNING CONFIGURING COMPLETING SUSPENDED STOPPED RESIZING REQUEUED REQUEUE_HOLD REQUEUE_FED"
    " SIGNALING SPECIAL_EXIT STAGE_OUT".split()
)
TEMPLATE = """#!/bin/bash
# Job of a sweep, written by taskrunner; `sbatch` takes it again as it stands.
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}
#SBATCH --signal=B:USR1@{stop}
{options}
hosts=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
# A step of a job that has its nodes to itself gets none of their devices unless it asks.
devices=$(scontrol --details show job "$SLURM_JOB_ID" |
  grep -o ' GRES=[^ ]*' | head -n1 | sed 's/ GRES=//; s/([^)]*)//g')
on() {{
  local host=$1; shift
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" ${{devices:+--gres="$devices"}} "$@"
}}
# After a requeue, the clean-up of the run before may be under way still (4).
again='over=; trap "over=yes" TERM
for try in {{1..{tries}}}; do
  "$@"; code=$?; [ $code = 4 ] && [ -z "$over" ] || exit $code; sleep 2
done; exit 4'
side() {{ on "$1" bash -c "$again" "$@"; }}
address() {{ on "$1" hostname -I | cut -d' ' -f1; }}
export SWEEP=$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}
export RENDEZVOUS_TOKEN=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n')
{addresses}
# What was measured before is needed where it is measured: another node may have another disk.
on "${{hosts[0]}}" sh -c {restore}
late=
# Its commands end their runs at SIGTERM. The job itself is not among the steps.
trap 'late=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap ':' TERM
{sides}
status=0
for pid in "${{sides[@]}}"; do
  wait "$pid"; code=$?
  # A signal ends the wait, not the command.
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
  [ "$code" -le "$status" ] || status=$code
done
[ -z "$late" ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
"""


class Options(NamedTuple):
    """What sbatch is told; "" for the cluster's own default."""

    partition: str = ""
    account: str = ""
    time: str = ""


def script(
    name: str,
    sides: Sequence[Sequence[str]],
    log: str,
    results: tuple[str, str],
    options: Options,
) -> str:
    """The text of a job. `sides` are the command lines of the nodes, `results` the folder in which all nodes
    see the results, and the one in which node 1 looks for them. Raises UsageError.
    """
    shared, own = (_quoted(folder) for folder in results)
    stated = options._asdict().items()
    for option, value in stated:
        if not WORD.fullmatch(value):
            raise UsageError(f"--{option} {value!r}: letters, digits and . , : = @ + - only")
    return TEMPLATE.format(
        name=name,
        nodes=len(sides),
        log=log,
        stop=STOP_S,
        tries=TRIES,
        options="\n".join(f"#SBATCH --{option}={value}" for option, value in stated if value),
        addresses="\n".join(
            f': "${{{name}:=$(address "${{hosts[{index}]}}")}}"; export {name}'
            for index, name in enumerate(("NODE1_PRIVATE", "NODE2_PRIVATE")[: len(sides)])
        ),
        restore=shlex.quote(f"mkdir -p {own} {shared} && cp -rn {shared}/. {own}/"),
        sides="sides=()\n"
        + "\n".join(
            f'side "${{hosts[{index}]}}" {shlex.join(words)} & sides+=($!)'
            for index, words in enumerate(sides)
        ),
    )


def _quoted(folder: str) -> str:
    """A folder for a shell, which shall know the home that ~ means."""
    home, separator, rest = folder.partition("/")
    return home + separator + shlex.quote(rest) if home == "~" else shlex.quote(folder)


def submit(path: str, environment: Mapping[str, str]) -> str:
    """Submit a job; its id. `environment` is that of the job. Raises UsageError, StateError."""
    return client.ask(["sbatch", "--parsable", path], environment).split(";")[0]


def cancel(job: str) -> None:
    """End a job, and with it the runs of its steps. Raises UsageError, StateError."""
    client.ask(["scancel", "--full", job], missing=client.UNKNOWN)

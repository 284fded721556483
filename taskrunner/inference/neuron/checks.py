"""What a Neuron node says about itself: devices, cores, processes, EFA, packages, and a lock left behind."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..circumstances import machine
from ..tools.process import find, output_of

LOCK = Path("/tmp/nrt_kv_store_server.lock")
PLACES = ("/opt/aws/neuron/bin",)
PATIENCE_S = 60.0
NEEDED = {"old": ("neuronx-cc", "neuronx-distributed-inference", "vllm"), "new": ("neuronx-cc", "vllm")}


class Problem(NamedTuple):
    """What is wrong, and what to do."""

    what: str
    hint: str


def devices(text: str) -> list[dict[str, Any]]:
    """The devices of `neuron-ls -j`. Raises ValueError for what is not its output."""
    listed = json.loads(text)
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "nc_count" in one for one in listed):
        raise ValueError("not the output of neuron-ls -j")
    return listed


def hardware(cores: int) -> Iterator[Problem]:
    """Whether there are as many free cores as are needed."""
    program = find("neuron-ls", *PLACES)
    if program is None:
        yield Problem("neuron-ls is not installed", "use a Neuron AMI, or install aws-neuronx-tools")
        return
    status, output, errors = output_of([program, "-j"], PATIENCE_S)
    try:
        listed = devices(output)
    except ValueError:
        words = (errors or output).strip().splitlines()
        said = words[-1] if words else f"status {status}"
        yield Problem(f"neuron-ls -j: {said}", "look for the driver: lsmod | grep neuron; ls /dev/neuron*")
        return
    count = sum(one["nc_count"] for one in listed)
    size = sum(one.get("memory_size", 0) for one in listed) / 2**30
    print(f"{len(listed)} Neuron devices, {count} cores, {size:.0f} GiB")
    if count < cores:
        yield Problem(
            f"{count} cores, {cores} are needed", "choose a larger instance, or a smaller TENSOR_PARALLEL"
        )
    busy = {
        (process["pid"], process.get("command", ""))
        for one in listed
        for process in one.get("neuron_processes") or ()
    }
    for pid, command in sorted(busy):
        yield Problem(f"process {pid} holds cores: {command}", f"end it: kill {pid}")


def packages(python: str, kind: str) -> Iterator[Problem]:
    """Whether the virtual environment has what the flow needs."""
    names = NEEDED[kind]
    code = (
        "import json, sys; from importlib.metadata import distributions as d; "
        "print(json.dumps({one.metadata['Name']: one.version for one in d()}))"
    )
    status, output, _ = output_of([python, "-c", code], PATIENCE_S)
    if status != 0:
        yield Problem(f"{python} does not run", "give VENV, such as /opt/aws_neuronx_venv_pytorch_...")
        return
    installed: Mapping[str, str] = json.loads(output)
    for name in names:
        if name in installed:
            print(name, installed[name])
        else:
            yield Problem(
                f"{name} is not in the environment of {python}", "give the VENV of the AMI that has it"
            )


def efa() -> Iterator[Problem]:
    """Whether libfabric finds EFA, which both flows need between servers."""
    program = find("fi_info")
    if program is None:
        yield Problem("fi_info is not installed", "run the EFA installer")
    elif output_of([program, "-p", "efa", "-t", "FI_EP_RDM"], PATIENCE_S)[0] != 0:
        yield Problem(
            "libfabric finds no EFA", "enable EFA on a network interface, as disaggregation needs it"
        )


def lock(path: Path = LOCK) -> Iterator[Problem]:
    """Whether another user has left the lock file of the runtime's store, which then cannot be opened."""
    try:
        about = path.stat()
    except OSError:
        return
    if about.st_uid == os.geteuid() or os.geteuid() == 0:
        return
    try:
        owner = pwd.getpwuid(about.st_uid).pw_name
    except KeyError:
        owner = str(about.st_uid)
    holders = list(_holders(about.st_ino, machine.text_of(Path("/proc/locks")).splitlines()))
    if holders:
        yield Problem(
            f"{path} belongs to {owner}, and process {holders[0]} holds it",
            f"wait for it, or end it: sudo kill {holders[0]}",
        )
    else:
        yield Problem(f"{path} belongs to {owner}, and no process holds it", f"remove it: sudo rm {path}")


def _holders(inode: int, locks: Sequence[str]) -> Iterator[int]:
    """The processes that hold locks on a file, by lines of /proc/locks."""
    for line in locks:
        match = re.search(r" (\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ", line)
        if match and int(match[2]) == inode:
            yield int(match[1])

"""Identities of machines, boots and processes: a pid that is reused does not match."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping


def stat(pid: int) -> tuple[str, int, int, int] | None:
    """State, parent, session and start time (clock ticks since boot) of a process."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19])


def boot_id() -> str:
    """What tells this start of the machine from others."""
    global _boot
    _boot = _boot or _text_of("/proc/sys/kernel/random/boot_id")
    return _boot


def machine() -> str:
    """What tells this machine from others that share its folders; it can be part of a file name.

    The machine id, else the boot id and the host name; on EC2 the instance id as well, because instances made
    from one image may have the same machine id.
    """
    global _machine
    if not _machine:
        own = _text_of("/etc/machine-id")
        if not re.fullmatch("[0-9a-f]{32}", own):
            own = "%s-%s" % (boot_id()[:8], re.sub("[^A-Za-z0-9-]", "_", os.uname().nodename)[:40])
        instance = _text_of("/sys/devices/virtual/dmi/id/board_asset_tag")
        _machine = own[:12] if len(own) == 32 else own
        if re.fullmatch("i-[0-9a-f]+", instance):
            _machine += instance[1:]
    return _machine


_boot = _machine = ""


def _text_of(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def of(pid: int) -> dict[str, object]:
    """What tells this process from a later one with the same pid, here and on other machines."""
    fields = stat(pid)
    return {"pid": pid, "start": fields[3] if fields else None, "boot": boot_id(), "machine": machine()}


def here(record: Mapping[str, object]) -> bool:
    """Whether the process of an `identity` belongs to this machine, since it was started last."""
    return record.get("boot") == boot_id() and record.get("machine", machine()) == machine()


def alive(record: Mapping[str, object]) -> bool:
    """Whether the process of an `identity` is still there, and not just a zombie."""
    pid = record.get("pid")
    fields = stat(pid) if isinstance(pid, int) and here(record) else None
    return fields is not None and fields[0] not in "ZX" and fields[3] == record.get("start")


def session(record: Mapping[str, object]) -> int | None:
    """The session that the process of an `identity` leads, or has led: as long as any of it is left, the
    kernel gives its number to nobody else. None where it is not sure to be that session.
    """
    pid = record.get("pid")
    if not isinstance(pid, int) or not isinstance(record.get("start"), int) or not here(record):
        return None
    fields = stat(pid)
    return pid if fields is None or fields[3] == record.get("start") else None

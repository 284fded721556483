"""Long-running servers as data: started once, kept while they are well, stopped as a whole tree.

A service is found by its own record and the tag its processes inherit, never by a pattern over all
processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time

from . import layout, ports, processes, script
from .context import Cancelled, StepError
from .events import parse
from .probes import address, describe, listening, probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .context import Context

STOP_WITHIN = 30.0
GIVE_UP_WITHIN = 5.0
"""Seconds that a service has to end which has failed to start, and so serves nobody."""
CAUSE_WITHIN = 1.0
"""Seconds in which the cause of a failure is logged after the first line that tells of it."""
FREE_WITHIN = 60.0


def ensure(ctx: Context, step: dict[str, Any], service: dict[str, Any]) -> bool:
    """Bring a service into the wanted state; True when it was in it already.

    Raises StepError with the last lines of its log when it exits, when its log matches `fail_on`,
    or when it is not ready in time.
    """
    directory = layout.service_dir(ctx.root, service["name"])
    os.makedirs(directory, mode=0o700, exist_ok=True)
    record = parse(layout.read_bytes(_record_path(directory))) or {}
    # A process may have written over its environment, where the tag is (vLLM's engine does, for its title).
    running = bool(record) and bool(processes.tree(record["tag"], processes.session(record)))
    if service.get("state") == "stopped":
        if running:
            _stop(ctx, step, service, record)
        return not running
    if running and record["definition"] == service["definition"]:
        if not probe_ready(ctx, step, service):
            _tell(ctx, step, service, "kept", record["pid"])
            return True
        # It may still be on its way up, from a run whose engine was killed.
        young = time.time() - record["started"] < service["ready"]["timeout"]
        if young and processes.alive(record):
            _await_ready(ctx, step, service, record, directory)
            return False
    if running:
        _stop(ctx, step, service, record)
    record = _start(ctx, step, service, directory)
    _await_ready(ctx, step, service, record, directory)
    return False


def log_of(ctx: Context, name: str | None) -> str:
    return os.path.join(layout.service_dir(ctx.root, name), "log") if name else ""


def probe_ready(ctx: Context, step: dict[str, Any], service: dict[str, Any]) -> str:
    """What a service's `ready` says, "" for yes; also when it asks nothing."""
    if not _asks(service["ready"]):
        return ""
    return probe(service["ready"], ctx.folder(step, service), log_of(ctx, service["name"]))


def _asks(ready: dict[str, Any]) -> bool:
    return any(kind in ready for kind in ("http", "tcp", "file", "log"))


def _record_path(directory: str) -> str:
    return os.path.join(directory, "service.json")


def _tell(ctx: Context, step: dict[str, Any], service: dict[str, Any], state: str, pid: int) -> None:
    ctx.events.emit("service", step=step["id"], name=service["name"], state=state, pid=pid)


def _start(ctx: Context, step: dict[str, Any], service: dict[str, Any], directory: str) -> dict[str, Any]:
    asked = address(service["ready"])
    if asked and listening(*asked):
        # Else the probe would be answered by somebody else, and the service called ready.
        owner = ports.owner(asked[1])
        raise StepError("service", "port %d is in use already%s" % (asked[1], owner))
    log = os.path.join(directory, "log")
    with contextlib.suppress(FileNotFoundError):
        os.replace(log, log + ".1")
    tag = "service/%s/%s.%d" % (service["name"], ctx.run, step["index"])
    env = {**step["env"], **service.get("env", {})}
    command = service["command"]
    if not isinstance(command, str):
        command = "exec " + " ".join(map(script.quote, command))
    argv, exports = script.argv(service["name"], tag), None
    if step.get("run_as"):
        argv, exports = script.as_user(step["run_as"], argv), ctx.exports(env, tag)
    cwd = ctx.folder(step, service)
    path = os.path.join(directory, "script")
    stdin = script.write(path, script.program(cwd, None, [command], exports))
    try:
        pid, pump = ctx.spawn(argv, ctx.env(env, tag), stdin, log)
    finally:
        os.close(stdin)
    if pump:
        pump.leave()
    record = {
        "name": service["name"],
        "definition": service["definition"],
        "tag": tag,
        "started": time.time(),
        "run": ctx.run,
        **processes.identity(pid),
    }
    layout.write_atomic(_record_path(directory), json.dumps(record).encode())
    _tell(ctx, step, service, "starting", pid)
    return record


def _await_ready(
    ctx: Context, step: dict[str, Any], service: dict[str, Any], record: dict[str, Any], directory: str
) -> None:
    """Wait until it is ready; whatever else becomes of it, nothing of it is left running."""
    log, path = os.path.join(directory, "log"), os.path.join(directory, "script")
    try:
        _ask_until_ready(ctx, step, service, record, log)
    except StepError as error:
        try:
            _stop(ctx, step, service, record, hurry=True)
        except StepError as other:
            raise StepError("service", "%s; and %s" % (error.detail, other.detail)) from error
        raise
    except Cancelled:
        _stop(ctx, step, service, record)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # it may hold secrets, and bash has read it
    _tell(ctx, step, service, "ready", record["pid"])


def _ask_until_ready(
    ctx: Context, step: dict[str, Any], service: dict[str, Any], record: dict[str, Any], log: str
) -> None:
    ready, name = service["ready"], service["name"]
    deadline = time.monotonic() + ready["timeout"]
    patterns = [(text, re.compile(text.encode(), re.MULTILINE)) for text in service.get("fail_on", ())]
    seen, pause = 0, 0.02
    while True:
        ctx.control.reap()
        # The log after this: what a server says at last is in it once the server is gone.
        alive = processes.alive(record)
        said, upto = _matched(patterns, log, seen)
        if said:
            if alive:
                ctx.control.sleep(CAUSE_WITHIN)
                said, _ = _matched(patterns, log, seen)
            if ctx.control.cancelled:
                raise Cancelled
            raise StepError("service", said)
        seen = upto
        if not alive:
            raise StepError("service", "%s exited before it was ready%s" % (name, _last_lines(log)))
        missing = probe_ready(ctx, step, service)
        if not missing and processes.alive(record):
            return
        if ctx.control.cancelled:
            raise Cancelled
        if missing and time.monotonic() >= deadline:
            detail = "%s was not ready (%s) within %g s: %s%s"
            asked = describe(ready)
            raise StepError("service", detail % (name, asked, ready["timeout"], missing, _last_lines(log)))
        ctx.control.pause(pause)
        pause = min(pause * 1.5, 0.5)


def _matched(patterns: list[tuple[str, Any]], log: str, seen: int) -> tuple[str, int]:
    """Search what the log has grown by: what the first of the patterns that is in it says, and up to where
    it has been searched, a whole line.
    """
    data = layout.read_by_offset(log, seen)
    for text, pattern in patterns:
        found = pattern.search(data)
        if found:
            line = data[data.rfind(b"\n", 0, found.start()) + 1 :].split(b"\n", 1)[0]
            said = line.decode("utf-8", "replace").strip()
            return "its log matches fail_on %r: %s" % (text, said), seen
    end = data.rfind(b"\n") + 1
    return "", seen + (end or (len(data) if len(data) >= 1 << 20 else 0))


def _last_lines(log: str) -> str:
    lines = layout.tail(log)
    return "; the end of %s:\n%s" % (log, "\n".join(lines)) if lines else "; its log is empty"


def _stop(
    ctx: Context, step: dict[str, Any], service: dict[str, Any], record: dict[str, Any], hurry: bool = False
) -> None:
    """End the service's process tree and wait until its ports and GPU memory are free."""
    pid = processes.session(record)
    _tell(ctx, step, service, "stopping", record["pid"])
    members = processes.tree(record["tag"], pid)
    held = ports.listening(members)
    grace = service.get("stop_timeout", STOP_WITHIN)
    if hurry:
        grace = min(grace, GIVE_UP_WITHIN)
    left = processes.end_tree(record["tag"], pid, grace, ctx.control.reap)
    if left:
        raise StepError("service", "%s: processes that cannot be ended: %s" % (service["name"], left))
    deadline = time.monotonic() + FREE_WITHIN
    while True:
        busy = ["port %d" % port for port in sorted(held & ports.listening(None))]
        busy += ["GPU memory of pid %d" % gpu for gpu in sorted(members & _gpu_pids())]
        if not busy:
            break
        if time.monotonic() >= deadline:
            raise StepError("service", "%s has ended, but not free: %s" % (service["name"], busy))
        ctx.control.sleep(0.2)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_record_path(layout.service_dir(ctx.root, service["name"])))
    _tell(ctx, step, service, "stopped", record["pid"])


def _gpu_pids() -> set[int]:
    """The processes that hold memory of an NVIDIA GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return set()
    query = [tool, "--query-compute-apps=pid", "--format=csv,noheader"]
    with contextlib.suppress(OSError), os.popen(" ".join(map(script.quote, query))) as output:
        return {int(line) for line in output if line.strip().isdigit()}
    return set()

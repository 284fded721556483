"""Long-running servers as data: started once, kept while they are well, stopped as a whole tree.

A service is found by its own record and the tag its processes inherit, never by a pattern over all
processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time

from ..store import fileio, identity, paths
from ..store.events import parse
from . import patterns, ports, processes, step_script
from .context import START_WITHIN, Cancelled, StepError
from .probes import address, describe, listening, probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

    from ..plan import Probe, Service, Step
    from .context import Context

STOP_WITHIN = 30.0
GIVE_UP_WITHIN = 5.0
"""Seconds that a service has to end which has failed to start, and so serves nobody."""
CONTAINER_ENGINES = ("docker-proxy", "rootlessport", "conmon", "slirp4netns", "pasta")
"""What listens for a server in a container."""
SETTLED_AFTER = 1.0
"""Seconds after which a service counts as ready that has no `ready`."""
CAUSE_WITHIN = 1.0
"""Seconds in which the cause of a failure is logged after the first line that tells of it."""
FREE_WITHIN = 60.0


def ensure(ctx: Context, step: Step, service: Service) -> bool:
    """Bring a service into the wanted state; True when it was in it already.

    Raises StepError with the last lines of its log when it exits, when its log matches `fail_on`,
    or when it is not ready in time.
    """
    service = {**service, "name": ctx.named(service["name"])}
    directory = paths.service_dir(ctx.root, ctx.project, service["name"])
    fileio.private_folder(directory)
    with _locked(ctx, directory):
        return _ensured(ctx, step, service, directory)


@contextlib.contextmanager
def _locked(ctx: Context, directory: str) -> Iterator[None]:
    """Alone with a service: another run that wants it, too, waits until it is ready, and finds it so."""
    fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if ctx.control.cancelled:
                    raise Cancelled from None
                ctx.control.sleep(0.1)
        yield
    finally:
        os.close(fd)


def _ensured(ctx: Context, step: Step, service: Service, directory: str) -> bool:
    record = _record(ctx, directory, service["name"])
    # A process may have written over its environment, where the tag is (vLLM's engine does, for its title).
    running = bool(record) and bool(_members(record))
    if service.get("state") == "stopped":
        if running:
            ctx.begins()
            _stop(ctx, step, service, record, directory)
        return not running
    definition = _definition(ctx, step, service)
    if running and (record["definition"] == definition or _serves(ctx, step, service, directory)):
        if not probe_ready(ctx, step, service, record):
            _tell(ctx, step, service, "kept", record["pid"])
            return True
        # It may still be on its way up, from a run whose engine was killed.
        young = 0 <= time.time() - record["started"] < service["ready"]["timeout"]
        if young and identity.alive(record):
            _await_ready(ctx, step, service, record, directory)
            return False
    ctx.begins()
    if running:
        _stop(ctx, step, service, record, directory)
    record = _start(ctx, step, service, directory, definition)
    _await_ready(ctx, step, service, record, directory)
    return False


def _record(ctx: Context, directory: str, name: str) -> dict[str, Any]:
    """What is known of the service, {} for nothing; also as an older version has kept it."""
    for place in (directory, os.path.join(ctx.root, "services", paths.slug(name))):
        record = parse(fileio.read_bytes(_record_path(place))) or {}
        if all(isinstance(record.get(name), kind) for name, kind in RECORD) and identity.here(record):
            return {**record, "place": place}
    return {}


RECORD: tuple[tuple[str, Any], ...] = (
    ("tag", str),
    ("pid", int),
    ("definition", str),
    ("started", (int, float)),
)
"""What the record of a service has, at least."""


def _members(record: dict[str, Any]) -> set[int]:
    return processes.tree(record["tag"], identity.session(record), record.get("seen", 0))


def _definition(ctx: Context, step: Step, service: Service) -> str:
    """What tells a server from another one: what it is started with, here; not the words that ask for it."""
    folder = os.path.realpath(ctx.folder(step, service))
    return "%s %s" % (service["definition"], folder)


def _serves(ctx: Context, step: Step, service: Service, directory: str) -> bool:
    """Whether the server that runs does for what is asked for, as the service's `keep_if` says."""
    if not service.get("keep_if"):
        return False
    env = {**_env(step, service, directory), "TASKRUNNER_COMMAND": _command(service)}
    asked: Step = {
        **step,
        "guard": service["keep_if"],
        "env": env,
        "cwd": service.get("cwd") or step.get("cwd") or "",
    }
    from .step_commands import guard_holds

    return guard_holds(ctx, asked)


def _command(service: Service) -> str:
    command = service["command"]
    return command if isinstance(command, str) else "exec " + " ".join(map(step_script.quote, command))


def _env(step: Step, service: Service, directory: str) -> dict[str, str]:
    return {**step["env"], **service.get("env", {}), "TASKRUNNER_SERVICE": directory}


def log_of(ctx: Context, name: str | None) -> str:
    if not name:
        return ""
    return os.path.join(paths.service_dir(ctx.root, ctx.project, ctx.named(name)), "log")


def probe_ready(ctx: Context, step: Step, service: Service, record: dict[str, Any]) -> str:
    """What a service's `ready` says, "" for yes; also when it asks nothing."""
    ready = service["ready"]
    if not _asks(ready):
        return ""
    missing = probe(ready, ctx.folder(step, service), log_of(ctx, service["name"]))
    asked = None if missing or step.get("run_as") else address(ready)
    return missing or (_another(asked[1], record) if asked and ports.is_local(asked[0]) else "")


def _another(port: int, record: dict[str, Any]) -> str:
    """Who else than the service answers on this machine's port, in words; "" for nobody who can be seen."""
    if port in ports.listening(_members(record)):
        return ""
    owner = ports.owner(port)
    if not owner or any("(%s)" % name in owner for name in CONTAINER_ENGINES):
        return ""
    return "port %d does not belong to the service: it is in use%s" % (port, owner)


def _asks(ready: Probe) -> bool:
    return any(kind in ready for kind in ("http", "tcp", "file", "log"))


def _record_path(directory: str) -> str:
    return os.path.join(directory, "service.json")


def _tell(ctx: Context, step: Step, service: Service, state: str, pid: int) -> None:
    ctx.events.emit("service", step=step["id"], name=service["name"], state=state, pid=pid)


def _start(ctx: Context, step: Step, service: Service, directory: str, definition: str) -> dict[str, Any]:
    asked = address(service["ready"])
    if asked and listening(*asked):
        # Else the probe would be answered by somebody else, and the service called ready.
        owner = ports.owner(asked[1])
        raise StepError("service", "port %d is already in use%s" % (asked[1], owner))
    log = os.path.join(directory, "log")
    with contextlib.suppress(FileNotFoundError):
        os.replace(log, log + ".1")
    tag = "%s/%d.service" % (ctx.run, step["index"])
    env, command = _env(step, service, directory), _command(service)
    argv, exports = step_script.argv(tag), None
    if step.get("run_as"):
        argv, exports = step_script.as_user(step["run_as"], argv), ctx.exports(env, tag)
    record = {
        "name": service["name"],
        "definition": definition,
        "tag": tag,
        "started": time.time(),
        "run": ctx.run,
        "pid": 0,
        "boot": identity.boot_id(),
        "machine": identity.machine(),
    }
    path = os.path.join(directory, "script")
    program = step_script.program(ctx.folder(step, service), None, [command], exports)
    try:
        # Its tag is known before it is there: whoever comes next finds it, whatever happens to this process.
        ctx.with_room(lambda: _keep(directory, record), START_WITHIN)
        stdin = ctx.with_room(lambda: step_script.write(path, program, named=False), START_WITHIN)
    except OSError as error:
        raise StepError(
            "service", "cannot start %s: %s" % (service["name"], error.strerror or error)
        ) from error
    try:
        pid, pump = ctx.spawn(argv, ctx.env(env, tag), stdin, log)
    finally:
        os.close(stdin)
    if pump:
        pump.leave()
        ctx.control.release(pump.pid)
    ctx.control.release(pid)
    record.update(identity.of(pid))
    with contextlib.suppress(OSError):
        _keep(directory, record)
    _tell(ctx, step, service, "starting", pid)
    return record


def _keep(directory: str, record: dict[str, Any]) -> None:
    fileio.write_atomic(_record_path(record.get("place", directory)), json.dumps(record).encode())


def _await_ready(ctx: Context, step: Step, service: Service, record: dict[str, Any], directory: str) -> None:
    """Wait until it is ready; whatever else becomes of it, nothing of it is left running."""
    log = os.path.join(directory, "log")
    try:
        _ask_until_ready(ctx, step, service, record, log)
    except StepError as error:
        try:
            _stop(ctx, step, service, record, directory, hurry=True)
        except StepError as other:
            raise StepError("service", "%s; and %s" % (error.detail, other.detail)) from error
        raise
    except Cancelled:
        _stop(ctx, step, service, record, directory)
        raise
    record["seen"] = processes.ticks()
    with contextlib.suppress(OSError):
        _keep(directory, record)
    _tell(ctx, step, service, "ready", record["pid"])


def _ask_until_ready(ctx: Context, step: Step, service: Service, record: dict[str, Any], log: str) -> None:
    ready, name = service["ready"], service["name"]
    deadline = time.monotonic() + ready["timeout"]
    # Without a question, that it does not end at once has to do: its program may not even exist.
    settled = time.monotonic() + (0.0 if _asks(ready) else SETTLED_AFTER)
    causes = [(text, patterns.compiled(text)) for text in service.get("fail_on", ())]
    seen, pause = 0, 0.02
    while True:
        ctx.control.reap()
        # The log after this: what a server says at last is in it once the server is gone.
        alive = identity.alive(record)
        cause, upto = _matched(causes, log, seen)
        if cause:
            if alive:
                ctx.control.sleep(CAUSE_WITHIN)
                cause, _ = _matched(causes, log, seen)
            if ctx.control.cancelled:
                raise Cancelled
            raise StepError("service", cause)
        seen = upto
        if not alive:
            raise StepError("service", "%s exited before it was ready%s" % (name, _last_lines(log)))
        missing = probe_ready(ctx, step, service, record)
        if not missing and time.monotonic() >= settled and identity.alive(record):
            return
        if ctx.control.cancelled:
            raise Cancelled
        if missing and time.monotonic() >= deadline:
            detail = "%s was not ready (%s) within %g s: %s%s"
            asked = describe(ready)
            raise StepError("service", detail % (name, asked, ready["timeout"], missing, _last_lines(log)))
        ctx.control.pause(pause)
        pause = min(pause * 1.5, 0.5)


def _matched(causes: list[tuple[str, Any]], log: str, seen: int) -> tuple[str, int]:
    """Search what the log has grown by: what the first of the patterns that is in it says, and up to where
    it has been searched, a whole line.
    """
    data = fileio.read_by_offset(log, seen)
    for text, pattern in causes:
        try:
            match = patterns.search(pattern, data)
        except patterns.TooSlow as error:
            return "fail_on %r: %s" % (text, error), seen
        if match:
            line = data[data.rfind(b"\n", 0, match.start()) + 1 :].split(b"\n", 1)[0]
            matched = line.decode("utf-8", "replace").strip()
            return "its log matches fail_on %r: %s" % (text, matched), seen
    end = data.rfind(b"\n") + 1
    return "", seen + (end or (len(data) if len(data) >= 1 << 20 else 0))


def _last_lines(log: str) -> str:
    lines = fileio.tail(log)
    return "; last lines of %s:\n%s" % (log, "\n".join(lines)) if lines else "; its log is empty"


def _stop(
    ctx: Context,
    step: Step,
    service: Service,
    record: dict[str, Any],
    directory: str,
    hurry: bool = False,
) -> None:
    """End the service's process tree and wait until its ports and GPU memory are free."""
    _tell(ctx, step, service, "stopping", record["pid"])
    members = _members(record)
    held = ports.listening(members)
    grace = service.get("stop_timeout", STOP_WITHIN)
    if hurry:
        grace = min(grace, GIVE_UP_WITHIN)
    root, seen = identity.session(record), record.get("seen", 0)
    left = processes.end_tree(record["tag"], root, grace, ctx.control.reap, seen)
    if left:
        raise StepError("service", "%s: some processes cannot be killed: %s" % (service["name"], left))
    deadline = time.monotonic() + FREE_WITHIN
    while True:
        busy = ["port %d" % port for port in sorted(held & ports.listening(None))]
        busy += ["GPU memory of pid %d" % gpu for gpu in sorted(members & _gpu_pids())]
        if not busy:
            break
        if time.monotonic() >= deadline:
            raise StepError(
                "service", "%s has ended, but its resources are still in use: %s" % (service["name"], busy)
            )
        ctx.control.sleep(0.2)
    with contextlib.suppress(OSError):
        os.unlink(_record_path(record.get("place", directory)))
    _tell(ctx, step, service, "stopped", record["pid"])


def _gpu_pids() -> set[int]:
    """The processes that hold memory of an NVIDIA GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return set()
    query = [tool, "--query-compute-apps=pid", "--format=csv,noheader"]
    with contextlib.suppress(OSError), os.popen(" ".join(map(step_script.quote, query))) as output:
        return {int(line) for line in output if line.strip().isdigit()}
    return set()

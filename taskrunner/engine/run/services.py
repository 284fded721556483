"""Long-running servers as data: started once, kept while they are well, stopped as a whole tree.

A service is found by its own record and the tag its processes inherit, never by a pattern over all
processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time

from ..store import fileio, identity, paths
from . import ports, processes, service_record, step_script
from .context import START_WITHIN, Cancelled, StepError
from .probes import address, listening
from .service_readiness import ask_until_ready, last_lines, probe_ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

    from ..plan import Service, Step
    from .context import Context

STOP_WITHIN = 30.0
GIVE_UP_WITHIN = 5.0
"""Seconds that a service has to end which has failed to start, and so serves nobody."""
FREE_WITHIN = 60.0
NOTED = '(\n%s\n)\nset -- $?; echo "$1" > "$TASKRUNNER_SERVICE"/%s; exit "$1"'
"""The command of a one-shot server, whose end nobody may be there to see."""


def ensure(ctx: Context, step: Step, service: Service) -> bool:
    """Bring a service into the wanted state; True when it was in it already.

    Raises StepError with the last lines of its log when it exits, when its log matches `fail_on`,
    or when it is not ready in time.
    """
    service = {**service, "name": ctx.named(service["name"])}
    directory = paths.service_dir(ctx.root, ctx.project, service["name"])
    fileio.private_folder(directory)
    if service.get("state") == "ended":
        # Without its lock: whoever wants to stop it meanwhile may.
        _await_end(ctx, step, service, directory)
        return False
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
    record = service_record.load(ctx, directory, service["name"])
    # A process may have written over its environment, where the tag is (vLLM's engine does, for its title).
    running = bool(record) and bool(service_record.members(record))
    if service.get("state") == "stopped":
        if running:
            ctx.begins()
            _stop(ctx, step, service, record, directory)
        return not running
    definition = _definition(ctx, step, service)
    # A one-shot server that runs may have had its client already.
    reusable = running and not service.get("one_shot")
    if reusable and (record["definition"] == definition or _serves(ctx, step, service, directory)):
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


def _tell(ctx: Context, step: Step, service: Service, state: str, pid: int) -> None:
    ctx.events.emit("service", step=step["id"], name=service["name"], state=state, pid=pid)


def _taken(service: Service) -> int:
    """The port that the service would listen on, if somebody listens there; else 0."""
    ready = service["ready"]
    if "listen" in ready:
        # A connection would be taken for the client.
        port = int(ready["listen"])
        return port if port in ports.listening(None) else 0
    asked = address(ready)
    return asked[1] if asked and listening(*asked) else 0


def _start(ctx: Context, step: Step, service: Service, directory: str, definition: str) -> dict[str, Any]:
    taken = _taken(service)
    if taken:
        # Else the probe would be answered by somebody else, and the service called ready.
        raise StepError("service", "port %d is already in use%s" % (taken, ports.owner(taken)))
    log = os.path.join(directory, "log")
    with contextlib.suppress(FileNotFoundError):
        os.replace(log, log + ".1")
    tag = "%s/%d.service" % (ctx.run, step["index"])
    env, command = _env(step, service, directory), _command(service)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, service_record.STATUS))
    if service.get("one_shot"):
        command = NOTED % (command, service_record.STATUS)
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
        ctx.with_room(lambda: service_record.keep(directory, record), START_WITHIN)
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
        service_record.keep(directory, record)
    _tell(ctx, step, service, "starting", pid)
    return record


def _await_ready(ctx: Context, step: Step, service: Service, record: dict[str, Any], directory: str) -> None:
    """Wait until it is ready; whatever else becomes of it, nothing of it is left running."""
    try:
        ask_until_ready(ctx, step, service, record, directory)
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
        service_record.keep(directory, record)
    _tell(ctx, step, service, "ready", record["pid"])


def _await_end(ctx: Context, step: Step, service: Service, directory: str) -> None:
    """Wait until a one-shot server has ended by itself, with status 0; else nothing of it is left running."""
    record = service_record.load(ctx, directory, service["name"])
    name, within = service["name"], service.get("stop_timeout", STOP_WITHIN)
    if not record:
        raise StepError("service", "%s has not been started" % name)
    ctx.begins()
    deadline = time.monotonic() + within
    while service_record.members(record):
        late = time.monotonic() >= deadline
        if late or ctx.control.cancelled:
            with _locked(ctx, directory):
                _stop(ctx, step, service, record, directory)
            if not late:
                raise Cancelled
            detail = "%s did not end by itself within %g s, and was stopped%s"
            raise StepError("service", detail % (name, within, last_lines(os.path.join(directory, "log"))))
        ctx.control.sleep(0.05)
    _tell(ctx, step, service, "ended", record["pid"])
    status = service_record.exit_status(directory)
    if status != 0:
        ended = "was killed" if status is None else "ended with status %d" % status
        raise StepError("service", "%s %s%s" % (name, ended, last_lines(os.path.join(directory, "log"))))


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
    members = service_record.members(record)
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
        os.unlink(service_record.path_of(record.get("place", directory)))
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

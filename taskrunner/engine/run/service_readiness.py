"""Whether a service is ready: what its `ready` asks, and what its log and its end say meanwhile."""

from __future__ import annotations

import os
import time

from ..store import fileio, identity
from . import patterns, ports
from .context import Cancelled, StepError
from .probes import KINDS, address, describe, probe
from .service_record import exit_status, log_of, members

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..plan import Probe, Service, Step
    from .context import Context

CONTAINER_ENGINES = ("docker-proxy", "rootlessport", "conmon", "slirp4netns", "pasta")
"""What listens for a server in a container."""
SETTLED_AFTER = 1.0
"""Seconds after which a service counts as ready that has no `ready`."""
CAUSE_WITHIN = 1.0
"""Seconds in which the cause of a failure is logged after the first line that tells of it."""


def probe_ready(ctx: Context, step: Step, service: Service, record: dict[str, Any]) -> str:
    """What a service's `ready` says, "" for yes; also when it asks nothing."""
    ready = service["ready"]
    if not asks(ready):
        return ""
    if "listen" in ready:
        return _listens(step, int(ready["listen"]), record)
    missing = probe(ready, ctx.folder(step, service), log_of(ctx, service["name"]))
    asked = None if missing or step.get("run_as") else address(ready)
    return missing or (_another(asked[1], record) if asked and ports.is_local(asked[0]) else "")


def _listens(step: Step, port: int, record: dict[str, Any]) -> str:
    """What `listen` misses, "" for nothing. It never connects: a server may take that for its client."""
    # The sockets of another user's processes cannot be seen: then the port, which was free, has to do.
    pids = None if step.get("run_as") and os.geteuid() != 0 else members(record)
    # Many a server closes its socket when its client has come.
    return "" if port in ports.served(pids) else "nothing of it listens on port %d" % port


def _another(port: int, record: dict[str, Any]) -> str:
    """The process that listens on this machine's port instead of the service, in words; "" for none seen."""
    if port in ports.listening(members(record)):
        return ""
    owner = ports.owner(port)
    if not owner or any("(%s)" % name in owner for name in CONTAINER_ENGINES):
        return ""
    return "port %d does not belong to the service: it is in use%s" % (port, owner)


def asks(ready: Probe) -> bool:
    return any(kind in ready for kind in KINDS)


def ask_until_ready(
    ctx: Context, step: Step, service: Service, record: dict[str, Any], directory: str
) -> None:
    """Raises StepError when it cannot become ready any more, or not in time; Cancelled."""
    ready, name = service["ready"], service["name"]
    log = os.path.join(directory, "log")
    deadline = time.monotonic() + ready["timeout"]
    # Without a question, that it does not end at once has to do: its program may not even exist.
    settled = time.monotonic() + (0.0 if asks(ready) else SETTLED_AFTER)
    causes = [(text, patterns.compiled(text)) for text in service.get("fail_on", ())]
    seen, pause = 0, 0.02
    while True:
        ctx.control.reap()
        # Before the log is read: the last lines of a server are in it once the server is gone.
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
            if service.get("one_shot") and exit_status(directory) == 0:
                return  # its client was there at once
            raise StepError("service", "%s exited before it was ready%s" % (name, last_lines(log)))
        missing = probe_ready(ctx, step, service, record)
        if not missing and time.monotonic() >= settled and identity.alive(record):
            return
        if ctx.control.cancelled:
            raise Cancelled
        if missing and time.monotonic() >= deadline:
            detail = "%s was not ready (%s) within %g s: %s%s"
            asked = describe(ready)
            raise StepError("service", detail % (name, asked, ready["timeout"], missing, last_lines(log)))
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


def last_lines(log: str) -> str:
    lines = fileio.tail(log)
    return "; last lines of %s:\n%s" % (log, "\n".join(lines)) if lines else "; its log is empty"

"""The plan in a run directory: read, and left without its secrets when the run has ended."""

from __future__ import annotations

import contextlib
import json
import os

from ..store import fileio, identity, paths
from . import step_script
from .masking import Masker, secrets_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..plan import Plan

UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file can raise that something else has written, or half of it."""


def load_plan(directory: str) -> Plan | None:
    """The plan of a run directory; None when it is not there or not whole."""
    try:
        plan: Any = json.loads(fileio.read_bytes(os.path.join(directory, paths.PLAN)))
    except (ValueError, RecursionError):
        return None
    loaded: Plan | None = plan if isinstance(plan, dict) else None  # type: ignore[assignment]
    return loaded


def scrub(directory: str, plan: Plan | None = None) -> None:
    """Remove the secrets of a run that has ended: from its plan, and its steps' programs whole. A `plan` that
    is known to hold none is not read again.
    """
    steps = os.path.join(directory, "steps")
    with contextlib.suppress(OSError):
        for name in os.listdir(steps):
            os.unlink(os.path.join(steps, name))
        os.rmdir(steps)
    if plan is None or plan.get("secrets"):
        forget_secrets(directory)
        return
    with contextlib.suppress(OSError):
        os.unlink(paths.secrets_path(directory))


def forget_secrets(directory: str) -> None:
    """Remove the secrets from the plan of a run that does not go on; recovery needs none of them.

    A plan that cannot be written without them, on a full disk, goes itself.
    """
    steps = os.path.join(directory, "steps")
    with contextlib.suppress(OSError):
        for name in os.listdir(steps):
            program = os.path.join(steps, name)
            process = step_script.read_marks(fileio.read_bytes(program)).process
            if process is not None and not identity.alive(process):
                step_script.forget(program)
    path = os.path.join(directory, paths.PLAN)
    try:
        plan = load_plan(directory)
        if plan is None or not plan.get("secrets"):
            return
        masker = Masker(secrets_of(plan, {}))
        for name in plan["secrets"]:
            plan["variables"].pop(name, None)
        plan["secrets"] = []
        fileio.write_atomic(path, json.dumps(masker.value(plan)).encode())
    except UNREADABLE:
        with contextlib.suppress(OSError):
            os.unlink(path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(paths.secrets_path(directory))

"""The client before all others on its machine, where that is allowed: who waits for a processor measures
that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PRIORITY = 1
"""The lowest of the real-time ones is above every process that has none."""


@contextlib.contextmanager
def realtime() -> Iterator[bool]:
    """Run this thread as SCHED_RR (sched(7)); whether that was allowed: it takes CAP_SYS_NICE.

    The kernel leaves 5 % of the time to others, whatever such a thread does.
    """
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except (OSError, AttributeError):  # not allowed, or not Linux
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)

"""Where the commands begin: a Ctrl-C ends them from the first moment on, while the rest is imported."""

from __future__ import annotations

import os
from typing import NoReturn

INTERRUPTED = 130


def command(program: str = "taskrunner") -> NoReturn:
    """The command as a process."""
    # What `signal` stands on: that builds enumerations first.
    import _signal as signal  # type: ignore[import-not-found]

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from taskrunner.cli import main

    main.command(program)


def runner() -> NoReturn:
    """The command `runner` as a process."""
    command("runner")

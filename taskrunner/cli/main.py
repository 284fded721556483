"""The entry point: finds the command, and turns every error into one message and an exit status."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from taskrunner._version import __version__
from taskrunner.cli.output import streams
from taskrunner.errors import Detached, TaskFileError, TaskrunnerError, UsageError

if TYPE_CHECKING:
    from taskrunner.log import Level

INTERRUPTED = 130
CLOSED = 141
"""What a shell says of a process that SIGPIPE has ended."""


def main(argv: Sequence[str] | None = None, program: str = "taskrunner") -> int:
    """Run the command line; returns its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given == ["--version"]:
        print(f"{program} {__version__}")
        return 0
    from taskrunner.cli import arguments

    args = arguments.parse(given, program)
    try:
        if args.log_level or args.log_file or args.log_format:
            _log(args.log_level or "info", args.log_file or "", args.log_format == "json")
        module, name = args.handler.split(":")
        return int(getattr(import_module(f"taskrunner.cli.commands.{module}"), name)(args))
    except TaskrunnerError as error:
        if args.debug:
            raise
        _report(error, bool(getattr(args, "json", False)), program)
        return error.exit_status
    except (KeyboardInterrupt, Detached):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); there is nobody to tell.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except Exception as error:
        if args.debug:
            raise
        kind = type(error).__name__
        print(f"{program}: internal error: {kind}: {error} (--debug shows the traceback)", file=sys.stderr)
        return 1


def _log(level: Level, file: str, as_json: bool) -> None:
    from taskrunner import log

    try:
        log.configure(level, file, as_json)
    except OSError as error:
        raise UsageError(f"cannot write the log {file}: {error.strerror}") from error


def runner() -> NoReturn:
    """The command `runner` as a process."""
    command("runner")


def command(program: str = "taskrunner") -> NoReturn:
    """The command as a process: nothing is left to clean up at its end, so Python need not look."""
    # What is loaded at start stays; collecting it on the way only costs time.
    gc.disable()
    import signal  # not for who asks for the version only

    streams.open_streams()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = main(program=program)
    except KeyboardInterrupt:
        status = INTERRUPTED
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1
    os._exit(status)


def _report(error: TaskrunnerError, as_json: bool, program: str) -> None:
    if as_json:
        problems = error.problems if isinstance(error, TaskFileError) else []
        report = {
            "type": "error",
            "message": str(error),
            "hint": error.hint,
            "exit": error.exit_status,
            "problems": [problem.as_dict() for problem in problems],
        }
        print(json.dumps(report), flush=True)
        return
    if isinstance(error, TaskFileError):
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"{program}: {count} problem{'s'[: count != 1]}; nothing was run", file=sys.stderr)
        return
    print(f"{program}: {error}", file=sys.stderr)
    for line in error.hint.splitlines():
        print(f"  {line}", file=sys.stderr)

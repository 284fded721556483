"""`taskrunner FILE`, `run` and `attach`: start or find a run, show its events, pass signals on."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from taskrunner.cli.output.streams import protect
from taskrunner.errors import Detached, UsageError

if TYPE_CHECKING:
    from taskrunner import runs
    from taskrunner.api import Options
    from taskrunner.cli import typed
    from taskrunner.cli.output.run_plain import Renderer
    from taskrunner.engine.plan import Plan
    from taskrunner.events import Event

CANCELLED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED_S = 5.0
"""Schedulers send SIGTERM to the processes of a step by several ways: that is one wish to stop."""


def run(args: typed.Run) -> int:
    """Compile, then list, try dry, start detached, or run and show."""
    from taskrunner.cli.targets import about_node, again, transport_of

    transport = transport_of(args)
    if not args.list:
        transport.warm()
    # The rest is imported while the engine comes up.
    from taskrunner import api, packs
    from taskrunner.cli.output.remarks import remarking
    from taskrunner.cli.output.run_plain import renderer
    from taskrunner.cli.registry import COMMANDS

    file = args.file or last_file(args)
    # A word that is no file may be meant as a command.
    loaded = getattr(args, "loaded", None) or api.load(file if file == "-" else packs.find(file, COMMANDS))
    if args.list:
        from taskrunner.cli.commands.dry_run import show_steps

        return show_steps(loaded, args.json)
    plan = api.compile(loaded, on=transport, **options(args))
    plan["given"] = given(args, plan)
    protect([plan])
    if args.dry_run:
        from taskrunner.cli.commands.dry_run import dry_run

        return dry_run(plan, transport, args)
    transport.open()
    # From here on a Ctrl-C does not end this process: it finds the run, or waits until there is one.
    with Signals() as signals:
        begun = api.begin(plan, transport, idle=signals.pass_on)
        if args.detach:
            print(json.dumps({"run": begun.id, **about_node(args)}) if args.json else begun.id)
            _say(args, f"follow it with `{again(args, 'attach', begun.id)}`")
            return 0
        if begun.attached:
            _say(args, f"attached to run {begun.id}, which is under way")
        show = remarking(renderer(args, plan, lambda step: resume(args, file, plan, step)), args)
        return watch(begun, show, again(args, "attach", begun.id), signals)


def options(args: typed.Selection) -> Options:
    """What a run is given on the command line."""
    return {
        "env": variables(args.env),
        "env_files": args.env_file,
        "start": args.start,
        "until": args.until,
        "only": args.only,
        "reset": args.reset,
        "check": args.check,
        "defaults": getattr(args, "defaults", {}),
    }


def attach(args: typed.Attach) -> int:
    """Show a run from its beginning."""
    from taskrunner import runs
    from taskrunner.cli.output.remarks import remarking
    from taskrunner.cli.output.run_plain import renderer
    from taskrunner.cli.targets import again, transport_of

    found = runs.attach(args.run, transport_of(args))
    plan = found.transport.plan(found.id) or runs.NO_PLAN
    show = remarking(renderer(args, plan, lambda step: resume(args, plan.get("file", ""), plan, step)), args)
    with Signals() as signals:
        return watch(found, show, again(args, "attach", found.id), signals)


class Signals:
    """Hears SIGINT and SIGTERM as a wish to stop, the second of them and SIGHUP as one to leave."""

    def __init__(self) -> None:
        self.stop = False
        self.told = False
        self._since = 0.0

    def _stop(self, number: int, _: Any) -> None:
        if not self.stop:
            self.stop, self._since = True, time.monotonic()
        elif number != signal.SIGTERM or time.monotonic() - self._since > REPEATED_S:
            raise Detached

    def _leave(self, number: int, _: Any) -> None:
        raise Detached

    def pass_on(self, run: runs.Run) -> None:
        """Ask the run to stop, if that is wished and was not done.

        Not in the handler: that may interrupt what asking needs (a lock, half a message).
        """
        if self.stop and not self.told:
            self.told = run.cancel()

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._leave if number == signal.SIGHUP else self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def watch(run: runs.Run, show: Renderer, attach: str, signals: Signals) -> int:
    """Show a run until it ends. The first Ctrl-C or SIGTERM asks it to stop, the second leaves it."""
    noted = False

    def idle() -> None:
        nonlocal noted
        signals.pass_on(run)
        if signals.told and not noted:
            noted = True
            show.note("stopping the step, then running clean-up steps; press Ctrl-C again to detach")

    status = CANCELLED
    try:
        gc.enable()  # a run may take hours
        with run, show:
            for event in run.events(output=show.wants_output, idle=idle):
                _shown(show, event)
                if event["type"] == "run.finished":
                    status = event["exit"]
    except Detached:
        doing = "which is stopping" if signals.told else "which keeps running"
        show.note(f"detached from run {run.id}, {doing}; `{attach}` shows it")
    except BrokenPipeError:
        print(f"output closed; run {run.id} keeps running: `{attach}`", file=sys.stderr)
        raise
    return status


def _shown(show: Renderer, event: Event) -> None:
    """Show an event; where the output goes to a full disk, follow the run without showing it."""
    try:
        show.event(event)
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            print(f"cannot write the output: {error.strerror}; the run continues", file=sys.stderr)


def variables(given: list[str]) -> dict[str, str]:
    """The values of --env options. Raises UsageError for what is not NAME=VALUE."""
    values = {}
    for item in given:
        name, separator, value = item.partition("=")
        if not name.isidentifier() or not name.isascii():
            raise UsageError(f"--env {item}: expected NAME=VALUE", "for example --env PORT=8100")
        if not separator:
            if name not in os.environ:
                raise UsageError(
                    f"--env {name}: {name} is not set in the environment", f"use --env {name}=VALUE"
                )
            value = os.environ[name]
        if "\0" in value:
            raise UsageError(f"--env {name}: a value cannot contain a NUL character")
        values[name] = value
    return values


def given(args: typed.Selection, plan: Plan) -> list[str]:
    """The options that a run was started with and that count when it goes on; no secret is in them."""
    words: list[str] = []
    for item in args.env:
        name = item.partition("=")[0]
        words += ["--env", name if name in plan["secrets"] else item]
    for path in args.env_file:
        words += ["--env-file", path]
    if args.until:
        words += ["--until", args.until]
    return words


def resume(args: typed.Target, file: str, plan: Plan, step: str) -> str:
    """The command that goes on at a step, as it can be typed."""
    from taskrunner.cli.targets import again

    words = [file, *plan.get("given", [])]
    ids = [planned["id"] for planned in plan["steps"]]
    left_out = {planned["id"] for planned in plan["steps"] if planned.get("skip", {}).get("reason") == "only"}
    if left_out:
        chosen = [name for name in ids[ids.index(step) :] if name not in left_out]
        return again(args, "", *words, *(word for name in chosen for word in ("--only", name)))
    return again(args, "", *words, "--from", step)


def last_file(args: typed.Run) -> str:
    """The file that was run last here, for a --from without one. Raises UsageError."""
    if args.start is None:
        raise UsageError(
            "no task file given", "`taskrunner FILE`, or `taskrunner --from STEP` to resume the last one"
        )
    from taskrunner import history

    path = str(history.last_file())
    _say(args, f"resuming {path}, the file run last in this folder")
    return path


def _say(args: typed.Shown, text: str) -> None:
    if not (args.quiet or args.json):
        print(text, file=sys.stderr)

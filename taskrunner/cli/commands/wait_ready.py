"""`runner wait-ready`: until a node takes commands, or why it does not."""

from __future__ import annotations

import json
import time
from typing import Any

from taskrunner.cli import typed
from taskrunner.cli.commands.nodes import each, show_each
from taskrunner.cli.output.format import duration
from taskrunner.errors import TargetError
from taskrunner.fleet.nodes import Node
from taskrunner.transports import NodeTransport

PAUSE = 5.0
"""Seconds between two looks at a node that is not ready."""


def wait_ready(args: typed.WaitReady) -> int:
    """Wait until every node is registered, runs a command, and has ended its own start (cloud-init)."""
    began = time.monotonic()
    deadline = began + args.timeout

    def look(node: Node, transport: NodeTransport) -> float:
        state = ""
        while True:
            try:
                wrong = _missing(transport)
            except TargetError as error:
                if error.exit_status != TargetError.exit_status or getattr(error, "hopeless", False):
                    raise
                wrong = error
            if wrong is None:
                return time.monotonic() - began
            if time.monotonic() + PAUSE > deadline:
                what = f"{node.name}: not ready within {duration(args.timeout)}: {wrong}"
                raise TargetError(what, wrong.hint) from wrong
            if str(wrong) != state and not args.json:
                state = str(wrong)
                print(f"{node.name}: {state.removeprefix(f'{node.name}: ')}", flush=True)
            time.sleep(PAUSE)

    ready: list[dict[str, Any]] = []

    def show(node: Node, seconds: float) -> None:
        ready.append({"node": node.name, "ready": True, "seconds": round(seconds, 1)})
        if not args.json:
            print(f"{node.name}: ready after {duration(seconds)}")

    status = show_each(args, each(args, look), show)
    if args.json:
        print(json.dumps(ready))
    return status


def _missing(transport: NodeTransport) -> TargetError | None:
    """What keeps a node from being ready. Raises TargetError when it is not reached."""
    transport.check()
    transport.hello()
    left = transport.ready()
    return TargetError(f"still starting: {left}", "cloud-init status --long") if left else None

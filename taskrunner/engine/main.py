"""The engine's own small command line, as it is on a node: `python3 engine.pyz VERB RUN_DIR`.

run RUN_DIR [BELL]   run the plan there, in the foreground; BELL is a descriptor to ring;
                     with - for RUN_DIR, it comes as a line on stdin when it is known
start RUN_DIR        the same, detached; a second start of the same run does nothing
service [RUN_DIR]    the same, in the foreground of a process that is detached already
cancel RUN_DIR       ask the run to stop
status RUN_DIR       print `running`, `finished STATUS` or `interrupted`
serve                talk to a controller on stdin and stdout, as node/stdio_server.py describes
version
"""

from __future__ import annotations

import os
import sys

from . import VERSION
from .run import reaper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .run.reaper import Watched

VERBS = ("start", "service", "cancel")
"""Those that run/launch.py does, under these names."""


def main(argv: list[str]) -> int:
    """Do what the arguments say; returns the exit status. What a verb does not need is not imported."""
    verb, given = argv[:1], argv[1:]
    if verb == ["version"]:
        print(VERSION)
        return 0
    if verb == ["serve"]:
        from .node import stdio_server

        return stdio_server.main()
    if verb == ["run"] and given:
        return reaper.under(lambda watched: _work(watched, given))
    if verb == ["status"] and given:
        return status(*given)
    if verb and verb[0] in VERBS and (given or verb == ["service"]):
        from .run import launch

        return int(getattr(launch, verb[0])(*given))
    sys.stderr.write(__doc__ or "")
    return 2


def _work(watched: Watched, given: list[str]) -> int:
    from .run import launch  # by the engine alone: its reaper stays small

    return launch.work(watched, *given)


def status(directory: str) -> int:
    from .store import lock, paths
    from .store.events import read_events

    if lock.engine_alive(directory):
        print("running")
        return 0
    events, _ = read_events(os.path.join(directory, paths.EVENTS))
    last = events[-1] if events else {}
    print("finished %s" % last["status"] if last.get("type") == "run.finished" else "interrupted")
    return 0

"""This checkout beside another one, which BASELINE names: a `git worktree` of an older commit, say.

Both run with the same Python and the same dependencies, in turns.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers import guarded
from benchmarks.remote import Cost, bench, cost

ROUNDS, LIMIT = 31, 1.03
HERE = str(Path(__file__).parent.parent)
START = """
import runpy, sys
del sys.path[0]
runpy.run_module("taskrunner", run_name="__main__", alter_sys=True)
"""
LINES = (
    "yes 'a line of output, as a server may write it, of eighty characters or so ......' | head -c 200000000"
)


def versus(folder: Path) -> None:
    """Wall times of whole commands, pair by pair."""
    baseline = os.environ.get("BASELINE")
    if not baseline:
        print("versus: BASELINE names no other checkout\n")
        return
    (folder / "taskrunner.py").write_text(START)
    steps, output = folder / "steps.json", folder / "output.json"
    steps.write_text(json.dumps(guarded(100)))
    output.write_text(
        json.dumps({"name": "Output", "tasks": [{"id": "a", "skip_if": "false", "commands": [LINES]}]})
    )
    print(f"| {ROUNDS} pairs | before, ms | after, ms | after / before | processor time | target |")
    print("|---|---|---|---|---|---|")
    with bench(folder) as at:
        for name, words, env in (
            ("start: --version", ["--version"], {}),
            ("start: quickstart --list", ["quickstart", "--list"], {}),
            ("100 guarded no-op steps", [str(steps)], {}),
            ("the same over SSH", [str(steps), "--on", at.server.target], at.env),
            ("200 MB of output, shown", [str(output), "-v"], {}),
        ):
            _row(name, words, env, baseline, folder)
    print()


def _row(name: str, words: list[str], env: Mapping[str, str], baseline: str, folder: Path) -> None:
    # Not -m: that would take the package from the working folder.
    argv = [sys.executable, str(folder / "taskrunner.py"), *words]
    pairs: list[tuple[Cost, Cost]] = []
    for number in range(ROUNDS + 1):
        pair = [
            cost(argv, {**env, "PYTHONPATH": code, "TASKRUNNER_HOME": str(folder / f"state{side}")})
            for side, code in enumerate((baseline, HERE))
        ]
        if number:
            pairs.append((pair[0], pair[1]))
    before, after = (statistics.median(pair[side].wall for pair in pairs) for side in (0, 1))
    wall = statistics.median(new.wall / old.wall for old, new in pairs)
    spent = statistics.median(new.processor / old.processor for old, new in pairs)
    print(
        f"| {name} | {before * 1e3:.0f} | {after * 1e3:.0f} | {wall:.3f} | {spent:.3f} | at most {LIMIT} |",
        flush=True,
    )

"""What runs on the target: executes one plan, step by step, and leaves a log of it.

This package uses the standard library and Python 3.8 syntax only and imports nothing else of
taskrunner, because it is shipped to nodes as a single zip file. A controller talks to it through
files alone: it writes `plan.json` into a run directory, starts the engine on that directory, and
follows `events.jsonl` and `logs/` by byte offset.
"""

VERSION = "1"
"""Version of the plan, event and journal formats; a plan of another version is refused."""

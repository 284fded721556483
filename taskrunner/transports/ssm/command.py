"""The text of a command, and what is read from its output: see engine/node/bootstrap.py and reply.py."""

from __future__ import annotations

import base64
import json
import re
import shlex
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from taskrunner.engine.node import bootstrap

LIMIT = 45_000
"""Characters of a command: a document may have 64 KB, and that what is around it is not documented."""
PART = 27_000
"""Bytes that one command brings, as base64 within the limit."""
ANSWER = re.compile(r"taskrunner (\d+) ([A-Za-z0-9+/=]*)")

# The first line must name the interpreter: without it the agent runs sh. Base64, because the service
# replaces {{...}} in what it is given. Nothing of it is anybody's exit status.
SCRIPT = """\
#!/bin/bash
exec {python} -I -S - <<'TASKRUNNER'
import base64, zlib
exec(zlib.decompress(base64.b64decode("{program}")))
TASKRUNNER"""


@cache
def _bootstrap() -> str:
    return Path(bootstrap.__file__).read_text(encoding="utf-8")


def script(python: str, request: dict[str, Any]) -> str:
    """The command that asks the engine on a node for something."""
    program = f"{_bootstrap()}\nsys.exit(ask(json.loads({json.dumps(request)!r})))\n"
    return SCRIPT.format(
        python=shlex.quote(python), program=base64.b64encode(zlib.compress(program.encode(), 9)).decode()
    )


def answer(output: str) -> bytes | None:
    """The frames that stand in a command's output; None where they are not there, or cut off."""
    match = ANSWER.search(output)
    if match is None or len(match[2]) != int(match[1]):
        return None
    return zlib.decompress(base64.b64decode(match[2]))


def begun(output: str) -> bool:
    """Whether there is an answer in the output, of which the end was cut off."""
    return ANSWER.search(output) is not None

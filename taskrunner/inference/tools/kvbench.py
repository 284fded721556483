"""What kvbench plans: commands of nixlbench. kvbench measures nothing itself, so there is no result of it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from .reading import NotAResult, Parsed, last_words, record

KEYS = ("start_block_size", "start_batch_size", "total_buffer_size")


def kvbench(text: str) -> Parsed:
    """The plans of `kvbench plan`, as text or JSON. Raises NotAResult, also for what it has only computed."""
    plans: list[Any] = []
    if text.lstrip().startswith("["):
        try:
            plans = json.loads(text)
        except ValueError as error:
            raise NotAResult(f"not JSON, or cut off: {error}") from error
    else:
        joined = text.replace("\\\n", " ")
        for line in joined.splitlines():
            if line.startswith("nixlbench "):
                words = shlex.split(line)[1:]
                options = [word[2:] for word in words[::2]]
                plans.append(dict(zip(options, words[1::2])))
                if len(words) % 2 or not text.endswith("\n"):
                    raise NotAResult("its last line is cut off")
    if not plans or not all(isinstance(plan, dict) and set(KEYS) <= plan.keys() for plan in plans):
        raise NotAResult(
            f"there is no whole plan in it (kvbench itself measures nothing): {last_words(text)}"
        )
    return record("kvbench", notes=["a plan, not a measurement: nixlbench measures it"], plans=plans)

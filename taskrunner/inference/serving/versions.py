"""What each version of vLLM accepts: versions.json, taken from the source of its wheels."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("versions.json").read_text())
    return table


def number(version: str) -> tuple[int, int]:
    """(0, 32) of "0.32.0+cpu". Raises ValueError."""
    major, minor = version.lstrip("v").split("+")[0].split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()))


def has(version: str, feature: str) -> bool:
    """Whether this version has it."""
    entry, parsed = _table()["features"][feature], number(version)
    since, until = entry.get("since"), entry.get("until")
    return (since is None or parsed >= number(since)) and (until is None or parsed <= number(until))


def doubt_about(version: str) -> str:
    """Why it is not sure that what is known of versions holds for this one; "" where it is."""
    table, parsed = _table(), number(version)
    if parsed < number(table["oldest"]):
        return f"vLLM {version} is older than {table['oldest']}, the oldest version known here"
    if parsed > number(table["newest"]):
        return f"vLLM {version} is newer than {table['newest']}, the newest version known here"
    if any(parsed == number(unseen) for unseen in table["unseen"]):
        return f"vLLM {version} is assumed to behave like the versions around it"
    return ""

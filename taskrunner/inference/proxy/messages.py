"""What the proxy tells who started it."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line on the error output."""
    print(f"proxy: {text}", file=sys.stderr, flush=True)

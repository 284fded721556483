"""What the proxy tells whoever started it: lines on the error output, and its exit status."""

from __future__ import annotations

import sys

FAILED, USAGE, UNREACHABLE = 1, 2, 3


def say(text: str) -> None:
    """A line on the error output."""
    print(f"proxy: {text}", file=sys.stderr, flush=True)

"""File descriptors that a fork inherits."""

from __future__ import annotations

import os


def close_all_but(*keep: int) -> None:
    """Close what a fork has inherited, above all locks that it must not hold on."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that the list was read from

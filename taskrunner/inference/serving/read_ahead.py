"""The weights of a model into the page cache, while the server that will load them imports its libraries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

MOST = 0.5
"""Of the memory that is available: more would push out what was read first."""
BLOCK = 1 << 22
LOWEST = 19
"""The niceness of the process that reads: the server goes first."""


def read_ahead(model: str) -> bool:
    """Begin to read the weights in a model's folder, in a process of its own; whether that makes sense."""
    paths = sorted(Path(model).glob("*.safetensors"))
    if not paths or sum(path.stat().st_size for path in paths) > MOST * _available():
        return False
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return True
    # Forked twice: this process becomes the server, which would not wait for a child.
    try:
        if os.fork() == 0:
            _read(paths)
    finally:
        os._exit(0)


def _read(paths: Sequence[Path]) -> None:
    os.nice(LOWEST)
    buffer = [bytearray(BLOCK)]
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            offset = 0
            while count := os.preadv(fd, buffer, offset):
                offset += count
        finally:
            os.close(fd)


def _available() -> int:
    """Bytes of memory that programs may still have (proc_meminfo(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0

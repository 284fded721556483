"""What the workers of a proxy know of each other."""

from __future__ import annotations

import mmap


class Shares:
    """Counts of each worker, in memory that they share after a fork. Each writes its own alone."""

    def __init__(self, workers: int = 1) -> None:
        self.held = _counts(workers)
        """Bytes of bodies that are kept."""
        self.left = _counts(workers)
        """Connections of clients that have ended."""
        self.prefilled, self.decoded = _counts(workers), _counts(workers)
        """Requests that prefill and decode servers were chosen for."""


def _counts(workers: int) -> memoryview:
    return memoryview(mmap.mmap(-1, 8 * workers)).cast("q")

"""Writing to a transport at once: uvloop sends what it is given when all else that is ready is done, and what
waits meanwhile is measured by somebody.
"""

from __future__ import annotations

import asyncio
import os


def descriptor(transport: asyncio.BaseTransport) -> int:
    """The descriptor of a transport's socket; -1 where what is written is encrypted first."""
    if transport.get_extra_info("sslcontext") is not None:
        return -1
    return int(transport.get_extra_info("socket").fileno())


def write_now(transport: asyncio.Transport, fd: int, data: bytes) -> None:
    """Write, now if nothing waits to be written before; what the socket does not take is left to the loop.

    `fd` is that of `descriptor`, while the transport is open.
    """
    sent = 0
    if fd >= 0 and not transport.is_closing() and not transport.get_write_buffer_size():
        try:
            sent = os.write(fd, data)
        except OSError:
            sent = 0  # there is no room, or no connection any more: the loop finds out
    if sent < len(data):
        transport.write(data[sent:] if sent else data)

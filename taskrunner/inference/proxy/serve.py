"""Serving clients until a signal: listening sockets, timeouts, and draining."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Callable, Coroutine

from ..endpoint import bracketed
from .client_connection import ClientConnection
from .messages import USAGE, say
from .proxy import RELEASED_WITHIN, Proxy, Settings
from .shares import Shares

BACKLOG = 1024
RESERVED_FILES = 64
"""Descriptors that are not connections'."""
SWEEP = 0.5
"""Seconds between two checks for connections whose time is over."""


def listening(settings: Settings) -> list[socket.socket]:
    """Sockets that listen on all addresses of the host. Raises OSError."""
    sockets: list[socket.socket] = []
    port = settings.port
    addresses = socket.getaddrinfo(
        settings.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    try:
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            sockets.append(socket.socket(family, kind, protocol))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sockets[-1].bind((address[0], port, *address[2:]))
            sockets[-1].listen(BACKLOG)
            sockets[-1].setblocking(False)
            port = sockets[-1].getsockname()[1]
    except OSError:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def ready(settings: Settings, listeners: list[socket.socket]) -> str:
    """The line that says that clients can connect, and where."""
    return f"ready on {bracketed(settings.host)}:{listeners[0].getsockname()[1]}"


def run(
    serving: Callable[[Proxy], Coroutine[None, None, None]],
    settings: Settings,
    shares: Shares | None = None,
    place: int = 0,
) -> int:
    """Have a proxy serve in this process; the exit status."""
    import uvloop

    _open_files(settings)
    try:
        proxy = Proxy(settings, shares, place)
    except (ValueError, OSError) as error:
        say(str(error))
        return USAGE
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(serving(proxy))
    finally:
        loop.close()
    return 0


def _open_files(settings: Settings) -> None:
    """As many descriptors as are allowed; a connection of a client needs up to three."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY:
        settings.max_connections = min(settings.max_connections, (most - RESERVED_FILES) // 3)


async def alone(proxy: Proxy, listeners: list[socket.socket]) -> None:
    """Serve as the one process there is, until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: ClientConnection(proxy), sock=listener, backlog=BACKLOG)
        for listener in listeners
    ]
    say(ready(proxy.settings, listeners))

    def close() -> None:
        for server in servers:
            server.close()
        say(f"draining, at most {proxy.settings.drain:g} s")

    await until_stopped(proxy, asyncio.Event(), close)


async def until_stopped(proxy: Proxy, stop: asyncio.Event, close: Callable[[], None]) -> None:
    """Serve until `stop`, which SIGTERM and SIGINT set; then let nobody in, with `close`, and end what is
    under way, within the drain's time.
    """
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    sweep = loop.create_task(_sweep(proxy))
    await stop.wait()
    proxy.draining = True
    close()
    until = loop.time() + proxy.settings.drain
    while loop.time() < until and any(client.busy for client in proxy.clients):
        await asyncio.sleep(0.05)
    sweep.cancel()
    for client in list(proxy.clients):
        client.close()
    await asyncio.sleep(0.05)
    if proxy.releasing:
        await asyncio.wait(proxy.releasing, timeout=RELEASED_WITHIN)


async def _sweep(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP)
        now = loop.time()
        for client in list(proxy.clients):
            client.overdue(now)

"""Closed and open loop: when requests are sent. Callbacks only: a task for each request costs time that
counts.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..endpoint import Endpoint
from .connection import Connection, Exchange
from .realtime import realtime

LAG_POLL_S = 0.005
"""Seconds between two polls of how late the loop is."""
TICK = 0.001
"""What libuv's timers are rounded to."""


class Load(NamedTuple):
    """How requests come: `concurrency` at a time, or `rate` a second, `poisson` or evenly.

    `timeout` is that of one request, in seconds.
    """

    server: Endpoint
    concurrency: int = 1
    rate: float = 0.0
    poisson: bool = True
    timeout: float = 600.0
    seed: int = 0


@dataclass
class LoadRun:
    """What was sent and received, in the order of its end. `lags` are seconds by which the loop was late;
    `realtime` says whether the client went before other processes.
    """

    began: float = 0.0
    ended: float = 0.0
    exchanges: list[Exchange] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    realtime: bool = False


def run(
    load: Load,
    requests: Sequence[bytes],
    done: Callable[[Exchange], object] | None = None,
    start: float = 0.0,
) -> LoadRun:
    """Send all requests, and wait for what comes of them. `done` hears of each; `start` is a time of
    time.perf_counter to wait for. Raises OSError when the server cannot be reached.
    """
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        with realtime() as first:
            found = loop.run_until_complete(_run(load, requests, done, start))
        found.realtime = first
        return found
    finally:
        loop.close()
        gc.enable()
        gc.unfreeze()


async def _run(
    load: Load, requests: Sequence[bytes], done: Callable[[Exchange], object] | None, start: float
) -> LoadRun:
    loop = asyncio.get_running_loop()
    result, finished = LoadRun(), asyncio.Event()
    offsets = list(schedule(load, len(requests)))
    streams: list[Connection] = []
    idle: list[Connection] = []
    ahead = iter(range(len(requests)))
    watches: dict[int, asyncio.TimerHandle] = {}

    def ended(stream: Connection, exchange: Exchange) -> None:
        watch = watches.pop(exchange.number, None)
        if watch is not None:
            watch.cancel()
        result.exchanges.append(exchange)
        if load.rate:
            idle.append(stream)
        else:
            following = next(ahead, None)
            if following is not None:
                give(stream, following, 0.0)
        if done is not None:
            done(exchange)
        if len(result.exchanges) == len(requests):
            finished.set()

    def give(stream: Connection, index: int, scheduled: float) -> None:
        if stream.usable:
            watches[index] = loop.call_later(
                load.timeout, stream.give_up, f"response not complete within {load.timeout:g} s"
            )
            stream.send(index, requests[index], scheduled)
        else:
            opening.add(task := loop.create_task(anew(index, scheduled or time.perf_counter())))
            task.add_done_callback(opening.discard)

    async def anew(index: int, scheduled: float) -> None:
        try:
            stream = await connected()
        except OSError as error:
            now = time.perf_counter()
            lost = Connection(ended)
            ended(
                lost, Exchange(index, scheduled, now, now, 0, f"no connection: {error.strerror or error}", [])
            )
            return
        give(stream, index, scheduled)

    async def connected() -> Connection:
        _, stream = await loop.create_connection(
            lambda: Connection(ended), load.server.host, load.server.port, ssl=tls
        )
        streams.append(stream)
        return stream

    tls = load.server.tls()
    opening: set[asyncio.Task[None]] = set()
    count = min(load.concurrency, len(requests)) if not load.rate else min(len(requests), 64)
    await asyncio.gather(*(connected() for _ in range(count)))
    while time.perf_counter() < start:
        await asyncio.sleep(min(0.05, max(0.0, start - time.perf_counter())))
    gc.collect()
    gc.freeze()
    gc.disable()
    _watch_lag(loop, result.lags, finished)
    result.began = time.perf_counter()
    if load.rate:
        idle.extend(streams)
        # The loop's clock may have another zero.
        zero = loop.time() - time.perf_counter()

        def due(index: int, at: float) -> None:
            while idle and not idle[-1].usable:
                idle.pop()
            give(idle.pop() if idle else Connection(ended), index, at)

        for index, offset in enumerate(offsets):
            at = result.began + offset
            loop.call_at(at + zero, due, index, at)
    else:
        for stream in list(streams):
            give(stream, next(ahead), 0.0)
    await finished.wait()
    result.ended = time.perf_counter()
    for stream in streams:
        stream.close()
    await asyncio.sleep(0)
    return result


def schedule(load: Load, count: int) -> list[float]:
    """Seconds after the beginning at which each request is due; nothing where the load is a closed loop."""
    if not load.rate:
        return []
    chance, at, found = random.Random(load.seed), 0.0, []
    for _ in range(count):
        found.append(at)
        at += chance.expovariate(load.rate) if load.poisson else 1.0 / load.rate
    return found


def _watch_lag(loop: asyncio.AbstractEventLoop, lags: list[float], finished: asyncio.Event) -> None:
    def look(asked: float) -> None:
        now = time.perf_counter()
        lags.append(max(0.0, now - asked - LAG_POLL_S - TICK))
        if not finished.is_set():
            loop.call_later(LAG_POLL_S, look, now)

    loop.call_later(LAG_POLL_S, look, time.perf_counter())

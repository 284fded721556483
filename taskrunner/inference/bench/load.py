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
from .lateness import Stall, watch
from .realtime import realtime

TOO_LATE = "response not complete within"


class Load(NamedTuple):
    """How requests come: `concurrency` at a time or, where there are `offsets`, each at its own, in seconds
    after the beginning.

    `timeout` is that of one request, in seconds, with the connection that it needs.
    """

    server: Endpoint
    concurrency: int = 1
    offsets: Sequence[float] = ()
    timeout: float = 600.0


@dataclass
class LoadRun:
    """What was sent and received, in the order of its end. `stalls` are when the loop was late; `realtime`
    says whether the client went before other processes.
    """

    began: float = 0.0
    ended: float = 0.0
    exchanges: list[Exchange] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    realtime: bool = False


def run(
    load: Load,
    requests: Sequence[bytes],
    done: Callable[[Exchange], object] | None = None,
    start: float = 0.0,
    enough: Callable[[Exchange], bool] | None = None,
) -> LoadRun:
    """Send all requests, or until there are `enough`, and wait for what comes of them. `done` hears of each;
    `start` is a time of time.perf_counter to wait for. Raises OSError when the server cannot be reached.
    """
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        with realtime() as first:
            outcome = loop.run_until_complete(_run(load, requests, done, start, enough))
        outcome.realtime = first
        return outcome
    finally:
        loop.close()
        gc.enable()
        gc.unfreeze()


async def _run(
    load: Load,
    requests: Sequence[bytes],
    done: Callable[[Exchange], object] | None,
    start: float,
    enough: Callable[[Exchange], bool] | None,
) -> LoadRun:
    loop = asyncio.get_running_loop()
    result, finished = LoadRun(), asyncio.Event()
    streams: list[Connection] = []
    idle: list[Connection] = []
    ahead = iter(range(len(requests)))
    sent, over = 0, False
    watches: dict[int, asyncio.TimerHandle] = {}

    def ended(stream: Connection, exchange: Exchange) -> None:
        nonlocal over
        watch = watches.pop(exchange.number, None)
        if watch is not None:
            watch.cancel()
        result.exchanges.append(exchange)
        if load.offsets:
            idle.append(stream)
        elif not over:
            following = next(ahead, None)
            if following is not None:
                give(stream, following, 0.0)
        if done is not None:
            done(exchange)
        over = over or (enough is not None and enough(exchange))
        if len(result.exchanges) == (sent if over else len(requests)):
            finished.set()

    def give(stream: Connection, index: int, scheduled: float) -> None:
        nonlocal sent
        sent += 1
        pass_on(stream, index, scheduled)

    def pass_on(stream: Connection, index: int, scheduled: float) -> None:
        if stream.usable:
            left = load.timeout if not scheduled else scheduled + load.timeout - time.perf_counter()
            watches[index] = loop.call_later(max(0.0, left), stream.give_up, too_late)
            stream.send(index, requests[index], scheduled)
        else:
            opening.add(task := loop.create_task(anew(index, scheduled or time.perf_counter())))
            task.add_done_callback(opening.discard)

    async def anew(index: int, scheduled: float) -> None:
        try:
            stream = await connected()
        except OSError as error:
            now = time.perf_counter()
            why = too_late if isinstance(error, TimeoutError) else f"no connection: {error.strerror or error}"
            ended(Connection(ended), Exchange(index, scheduled, now, now, 0, why, []))
            return
        pass_on(stream, index, scheduled)

    async def connected() -> Connection:
        opened = loop.create_connection(
            lambda: Connection(ended), load.server.host, load.server.port, ssl=tls
        )
        try:
            _, stream = await asyncio.wait_for(opened, load.timeout)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            raise TimeoutError(f"no connection within {load.timeout:g} s") from None
        streams.append(stream)
        return stream

    too_late = f"{TOO_LATE} {load.timeout:g} s"
    tls = load.server.tls()
    opening: set[asyncio.Task[None]] = set()
    count = min(load.concurrency, len(requests)) if not load.offsets else min(len(requests), 64)
    await asyncio.gather(*(connected() for _ in range(count)))
    gc.collect()
    gc.freeze()
    gc.disable()
    while time.perf_counter() < start:
        await asyncio.sleep(max(0.0, min(0.05, start - time.perf_counter() - 0.002)))
    watch(loop, result.stalls, finished.is_set)
    result.began = start or time.perf_counter()
    if load.offsets:
        idle.extend(streams)
        # The loop's clock may have another zero.
        zero = loop.time() - time.perf_counter()

        def due(index: int, at: float) -> None:
            if time.perf_counter() < at:  # the loop's clock is one of milliseconds
                loop.call_soon(due, index, at)
                return
            if over:
                return
            while idle and not idle[-1].usable:
                idle.pop()
            give(idle.pop() if idle else Connection(ended), index, at)

        for index, offset in enumerate(load.offsets):
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


def schedule(rate: float, count: int, poisson: bool = True, seed: int = 0) -> list[float]:
    """When each of `count` requests is due, in seconds after the beginning, at `rate` requests a second."""
    chance, at, arrivals = random.Random(seed), 0.0, []
    for _ in range(count):
        arrivals.append(at)
        at += chance.expovariate(rate) if poisson else 1.0 / rate
    return arrivals

"""A proxy of several processes: one accepts connections and hands each to the worker that has the fewest.

Not by SO_REUSEPORT: the kernel spreads a few connections unevenly, a second proxy could share the port
unseen, and the connections that wait for a worker are lost when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field

from . import metrics, serve
from .client_connection import ClientConnection
from .messages import FAILED, say
from .proxy import RELEASED_WITHIN, Proxy, Settings
from .shares import Shares

MOST, CORES_EACH = 8, 4
"""Workers, unless a number is given: the servers need the machine's other cores."""
AT_ONCE = 1.0
"""Seconds: a worker that ends sooner would end again."""
ENDED_WITHIN = 5.0
"""Seconds that a worker has to end once it has drained."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def automatic() -> int:
    """How many workers this machine has use for."""
    return max(1, min(MOST, len(os.sched_getaffinity(0)) // CORES_EACH))


@dataclass
class Worker:
    """A process, the socket over which it gets connections, and how many it has got."""

    pid: int
    control: socket.socket
    given: int = 0
    since: float = field(default_factory=time.monotonic)


def run(settings: Settings, listeners: list[socket.socket]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    try:
        os.environ[metrics.DIRECTORY] = tempfile.mkdtemp(prefix="taskrunner-proxy-")
    except OSError as error:
        say(f"no folder for the metrics of several workers: {error}")
        return FAILED
    settings.max_connections = -(-settings.max_connections // settings.workers)
    try:
        return _Dispatcher(settings, listeners).run()
    finally:
        shutil.rmtree(os.environ[metrics.DIRECTORY], ignore_errors=True)


class _Dispatcher:
    """Starts workers, hands them connections, and replaces a worker that dies."""

    def __init__(self, settings: Settings, listeners: list[socket.socket]) -> None:
        self._settings, self._listeners = settings, listeners
        self._shares = Shares(settings.workers)
        self._workers: list[Worker] = []
        self._signals, self._wakeup = socket.socketpair()
        self._status = 0
        """That of a worker which ended while it started."""

    def run(self) -> int:
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        for sign in SIGNALS:
            signal.signal(sign, lambda *_: None)  # the descriptor tells
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        try:
            if all(self._start(place) for place in range(self._settings.workers)):
                say(serve.ready(self._settings, self._listeners))
                self._serve()
        finally:
            self._stop()
        return self._status

    def _start(self, place: int) -> bool:
        """Start a worker; whether it serves."""
        self._shares.held[place] = self._shares.left[place] = 0
        ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid == 0:
            status = FAILED
            try:
                signal.set_wakeup_fd(-1)
                for sign in SIGNALS:
                    signal.signal(sign, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                for other in (
                    ours,
                    self._signals,
                    self._wakeup,
                    *self._listeners,
                    *(w.control for w in self._workers),
                ):
                    other.close()
                status = _work(self._settings, self._shares, place, control, parent)
            finally:
                sys.stderr.flush()
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        control.close()
        if not ours.recv(1):
            self._status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            ours.close()
            return False
        ours.setblocking(False)
        self._workers[place : place + 1] = [Worker(pid, ours)]
        return True

    def _serve(self) -> None:
        """Accept until a signal asks for the end, or a worker does not stay."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is not self._signals:
                        self._accept(key.fileobj)  # type: ignore[arg-type]  # a listener
                    elif set(self._signals.recv(4096)) - {signal.SIGCHLD} or not self._replaced():
                        return

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has disconnected, or no descriptor is left: it waits
            connection, _ = listener.accept()
            with connection:
                self._hand_over(connection)

    def _hand_over(self, connection: socket.socket) -> None:
        counted = sorted(
            (worker.given - self._shares.left[place], place) for place, worker in enumerate(self._workers)
        )
        for _, place in counted:
            worker = self._workers[place]
            try:
                socket.send_fds(worker.control, [b"c"], [connection.fileno()])
            except OSError:
                continue  # it has ended, or takes none just now
            worker.given += 1
            return

    def _replaced(self) -> bool:
        """Start anew what has ended; whether all is well."""
        for place, worker in enumerate(self._workers):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid == 0:
                continue
            worker.control.close()
            code = os.waitstatus_to_exitcode(status)
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            say(f"worker {pid} ended with {how}; its connections are lost")
            worker.pid = 0
            if time.monotonic() - worker.since < AT_ONCE or not self._start(place):
                self._status = self._status or FAILED
                return False
        return True

    def _stop(self) -> None:
        for listener in self._listeners:
            listener.close()
        left = {worker.pid for worker in self._workers if worker.pid}
        if left and not self._status:
            say(f"draining, at most {self._settings.drain:g} s")
        for pid in left:
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + self._settings.drain + RELEASED_WITHIN + ENDED_WITHIN
        while left:
            left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
            if time.monotonic() > until:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _work(settings: Settings, shares: Shares, place: int, control: socket.socket, parent: int) -> int:
    """A worker's life; its exit status."""
    try:
        return serve.run(lambda proxy: _take(proxy, control), settings, shares, place)
    finally:
        if os.getppid() != parent:  # which would have removed it
            shutil.rmtree(os.environ[metrics.DIRECTORY], ignore_errors=True)


async def _take(proxy: Proxy, control: socket.socket) -> None:
    """Serve the connections that come over `control`, until it ends or a signal comes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    coming: set[asyncio.Task[None]] = set()
    control.setblocking(False)

    async def made(connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: ClientConnection(proxy), connection)
        except OSError:  # the client has disconnected
            proxy.shares.left[proxy.place] += 1
            connection.close()

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, files, *_ = socket.recv_fds(control, 1, 1)
                for file in files:
                    connection = socket.socket(fileno=file)
                    connection.setblocking(False)
                    task = loop.create_task(made(connection))
                    coming.add(task)
                    task.add_done_callback(coming.discard)
                if not data:
                    stop.set()
                    return

    def close() -> None:
        take()  # what was accepted is answered
        loop.remove_reader(control)

    loop.add_reader(control, take)
    control.send(b"r")
    await serve.until_stopped(proxy, stop, close)

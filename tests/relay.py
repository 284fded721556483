"""A TCP relay that delays what passes, cuts it, or swallows it."""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import threading
import time


class Relay:
    """Passes connections on to a port of this machine, each way `delay` seconds late."""

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.delay = delay
        self.swallow = False
        self._to = port
        self._listener = socket.create_server(("0.0.0.0", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((near, far))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        waiting: collections.deque[tuple[float, bytes]] = collections.deque()
        selector = selectors.DefaultSelector()
        with contextlib.suppress(OSError, ValueError, KeyError):
            selector.register(source, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                while waiting and waiting[0][0] <= now:
                    target.sendall(waiting.popleft()[1])
                pause = max(0.0, waiting[0][0] - now) if waiting else None
                if len(waiting) < 4096 and selector.select(pause):
                    data = source.recv(65536)
                    if not data:
                        break
                    if not self.swallow:
                        waiting.append((time.monotonic() + self.delay, data))
            while waiting:
                time.sleep(max(0.0, waiting[0][0] - time.monotonic()))
                target.sendall(waiting.popleft()[1])
        selector.close()
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End every connection, with a reset."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._pairs.clear()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self._listener.close()
        self.cut()

"""Secrets never reach a log: output that may hold one passes through here before it is written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select

from . import layout
from .reaper import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

MASK = b"***"
SHORTEST = 4
"""Shorter values cannot be masked: they would hide half of any output."""
BLOCK = 1 << 20
F_SETPIPE_SZ = 1031  # fcntl has the name from Python 3.10 on


def spellings(secret: str) -> set[bytes]:
    """The forms in which a secret shows up: itself, its lines, quoted for a shell, JSON or a URL."""
    forms = {secret, secret.strip(), secret.replace("'", "'\\''"), secret.replace("'", "'\"'\"'")}
    forms.update(line.strip() for line in secret.splitlines())
    forms.update(
        json.dumps(form, ensure_ascii=ascii)[1:-1] for form in list(forms) for ascii in (False, True)
    )
    forms.add("".join(c if c.isalnum() or c in "_.-~" else _percent(c) for c in secret))
    return {form.encode("utf-8", "surrogateescape") for form in forms if len(form) >= SHORTEST}


def _percent(character: str) -> str:
    return "".join("%%%02X" % byte for byte in character.encode("utf-8", "surrogateescape"))


class Masker:
    """Replaces secrets in a stream of bytes, however it is cut into writes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        found = set().union(*(spellings(secret) for secret in secrets)) if secrets else set()
        self._secrets = sorted(found, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)))
        self._first = {secret[:1] for secret in self._secrets}
        self._longest = len(self._secrets[0]) if self._secrets else 0
        self._held = b""

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def text(self, text: str) -> str:
        """`text` without its secrets."""
        if not self._secrets:
            return text
        data = text.encode("utf-8", "surrogateescape")
        return self._replace(data).decode("utf-8", "surrogateescape")

    def value(self, value: Any) -> Any:
        """A JSON value with every string in it masked; the names of its members stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {name: self.value(item) for name, item in value.items()}
        return value

    def feed(self, data: bytes) -> bytes:
        """What may be written of the stream so far; a possible beginning of a secret is held back."""
        data = self._held + data
        hold = self._possible_start(data)
        if hold < len(data):
            # A secret found across the point where another may begin is written as a mask now.
            for match in self._pattern.finditer(data):
                if match.start() >= hold:
                    break
                hold = max(hold, match.end())
        self._held = data[hold:]
        return self._replace(data[:hold])

    def flush(self) -> bytes:
        """The rest, at the end of the stream."""
        data, self._held = self._held, b""
        return self._replace(data)

    def _replace(self, data: bytes) -> bytes:
        if any(secret in data for secret in self._secrets):
            return self._pattern.sub(MASK, data)
        return data

    def _possible_start(self, data: bytes) -> int:
        """Where the end of `data` could be the beginning of a secret, else its length."""
        for start in range(max(0, len(data) - self._longest + 1), len(data)):
            if data[start : start + 1] in self._first:
                end = data[start:]
                if any(len(s) > len(end) and s.startswith(end) for s in self._secrets):
                    return start
        return len(data)


class Pump:
    """A small process that masks what a step writes, for as long as anything writes.

    A process of its own, because a server that a step leaves in the background goes on writing when
    the engine has ended; its output must neither be lost nor leak, and it must not die of SIGPIPE.
    """

    def __init__(self, masker: Masker, log: int) -> None:
        source, self.write_end = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(source, F_SETPIPE_SZ, BLOCK)
        settle_read, self._settle = os.pipe()
        self._settled, settled_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                # Not even the engine's own streams: their other end waits for the engine's end.
                null = os.open(os.devnull, os.O_RDWR)
                for standard in (0, 1, 2):
                    os.dup2(null, standard)
                close_all_but(source, log, settle_read, settled_write)
                _pump(masker, source, log, settle_read, settled_write)
                status = 0
            finally:
                os._exit(status)
        for fd in (source, settle_read, settled_write):
            os.close(fd)

    def settle(self) -> None:
        """Wait until everything written so far is in the log."""
        os.close(self.write_end)
        os.close(self._settle)
        os.read(self._settled, 1)
        os.close(self._settled)

    def leave(self) -> None:
        """Let it go on by itself: what it masks outlives this process."""
        for fd in (self.write_end, self._settle, self._settled):
            os.close(fd)


def _pump(masker: Masker, source: int, log: int, settle: int, settled: int) -> None:
    os.set_blocking(source, False)
    watched = [source, settle]
    while True:
        ready = select.select(watched, [], [])[0]
        # No more than the pipe can have held: what goes on writing must not hold up who settles.
        if _drain(masker, source, log, BLOCK):
            return
        if settle in ready:
            watched.remove(settle)
            os.close(settled)


def _drain(masker: Masker, source: int, log: int, most: int) -> bool:
    """Move what there is, up to about this many bytes; True at the end of the stream."""
    moved = 0
    while moved < most:
        try:
            data = os.read(source, BLOCK)
        except BlockingIOError:
            return False
        # A log that cannot be written, as on a full disk, loses output; who writes to the pipe must not
        # notice.
        with contextlib.suppress(OSError):
            layout.write_all(log, masker.feed(data) if data else masker.flush())
        if not data:
            return True
        moved += len(data)
    return False

"""Secrets never reach a log: output that may hold one passes through here before it is written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select

from ..store import fileio
from . import spelling
from .descriptors import close_all_but

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Mapping

MASK = b"***"
SHORT_SECRET_LINES, LONG_LINE_CHARACTERS = 3, 16
"""Lines of a secret that are each masked in every spelling; characters of a line of more that is masked."""
SHORTEST = 4
"""Shorter values cannot be masked: they would hide half of any output."""
PIPE, BLOCK = 1 << 20, 1 << 17
"""Bytes that the pipe of a step's output holds, and that are read at once: as many as stay in a processor's
cache.
"""
CREDENTIALS = (
    re.compile(r"://[^/?#\s:@]*:([^/?#\s@]+)@"),
    re.compile(r"://[^/?#\s:@]*:([^/?#\s]*@[^/?#\s]*)@"),  # an @ in it should be escaped, and often is not
    re.compile(r"://(?=[^/?#\s:@]*[0-9])([^/?#\s:@]{16,})(?::[^/?#\s@]*)?@"),  # a token for a user
)
"""Passwords and tokens in URLs (RFC 3986, section 3.2.1)."""
F_SETPIPE_SZ = 1031  # fcntl has the name from Python 3.10 on


def secrets_of(plan: Mapping[str, Any], environment: Mapping[str, str]) -> set[str]:
    """A plan's secrets, and the passwords in the URLs of its variables and the environment."""
    variables = plan["variables"]
    secrets = {variables[name] for name in plan["secrets"] if name in variables}
    return secrets | passwords([*variables.values(), *environment.values()])


def without_passwords(text: str) -> str:
    """A text without the passwords and tokens in its URLs."""
    if "://" in text:
        for pattern in reversed(CREDENTIALS):
            text = pattern.sub(_hidden, text)
    return text


def _hidden(match: re.Match[str]) -> str:
    begin, end = match.span(1)
    return match.string[match.start() : begin] + "***" + match.string[end : match.end()]


def passwords(texts: Iterable[str]) -> set[str]:
    """The passwords and tokens in URLs, as they are and as they are written there."""
    found: set[str] = set()
    for text in texts:
        if "://" in text:
            for password in (found for pattern in CREDENTIALS for found in pattern.findall(text)):
                # One that stands for a variable of a shell is none.
                if password.startswith(("$", "{")):
                    continue
                from urllib.parse import unquote  # slow to import, and seldom needed

                if password.isalpha() and password.islower():
                    # A word, as many a database on this machine has: it is one there, and nowhere else.
                    found.add(":%s@" % password)
                else:
                    found.update((password, unquote(password)))
    return found


class Masker:
    """Replaces secrets in a stream of bytes, however they are spelled and the stream is cut into writes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        spellings: set[str] = set()
        of_many: set[str] = set()
        for secret in secrets:
            # A line of a secret is one, too: what shows line by line puts something between them.
            lines = {line.strip() for line in secret.splitlines()}
            forms = {secret.strip()}
            if len(lines) <= SHORT_SECRET_LINES:
                forms |= lines
            else:
                # Of a key or a document: those that say something, as they are.
                of_many.update(line for line in lines if len(line) >= LONG_LINE_CHARACTERS)
            if len(secret.strip()) < SHORTEST:
                forms.add(secret)
            spellings.update(form for form in forms if len(form) >= SHORTEST)
        of_many -= spellings
        both = sorted(spellings | of_many, key=len, reverse=True)
        plain = [form.encode("utf-8", "surrogateescape") for form in both]
        alone = [form for form in plain if not any(form in other for other in plain if other is not form)]
        self._pattern = re.compile(b"|".join(map(re.escape, plain)))
        self._alone = re.compile(b"|".join(map(re.escape, alone)))
        as_they_are = {line.encode("utf-8", "surrogateescape") for line in of_many}
        each = [list(spelling.spellings(form, literal=form in as_they_are)) for form in plain]
        self._plain = [(of_form[0].anchor, form) for of_form, form in zip(each, plain)]
        self._spellings = [spellings for of_form in each for spellings in of_form]
        self._anchors = [anchor for spellings in self._spellings for _, anchor in spellings.anchors]
        self._anchored = all(spellings.anchors for spellings in self._spellings)
        """Whether a text that holds none of these and no escapes holds no secret."""
        self._held = self._before = b""

    def __bool__(self) -> bool:
        return bool(self._spellings)

    def text(self, text: str) -> str:
        """`text` without its secrets."""
        if not self._spellings:
            return text
        data = text.encode("utf-8", "surrogateescape")
        shown = _masked(data, self._places(spelling.Text(data)), 0, len(data))
        return shown.decode("utf-8", "surrogateescape")

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
        written = len(self._before)
        data = self._before + self._held + data
        text = spelling.Text(data)
        hold = min((found.cut(text, written) for found in self._spellings), default=len(data))
        places = self._places(text, written)
        for begin, end in places:
            # A secret found across the point where another may begin is written as a mask now.
            if begin < hold < end:
                hold = end
        self._held, self._before = data[hold:], data[max(0, hold - spelling.BEGUN) : hold]
        return _masked(data, places, written, hold)

    def flush(self) -> bytes:
        """The rest, at the end of the stream."""
        data, written = self._before + self._held, len(self._before)
        self._held = self._before = b""
        return _masked(data, self._places(spelling.Text(data), written), written, len(data))

    def _places(self, text: spelling.Text, written: int = 0) -> list[tuple[int, int]]:
        """Where there are secrets, in order; they may overlap. What has begun in what was `written` already
        is masked from there on.
        """
        places: list[tuple[int, int]] = []
        data = text.data
        if self._anchored and not text.leads and all(text.first(anchor) < 0 for anchor in self._anchors):
            return places
        if any(text.first(anchor) >= 0 and form in data for anchor, form in self._plain):
            places = [spans.span() for spans in self._pattern.finditer(data, written)]
            # What is found already is not looked at again, character by character; what is a part of another
            # secret may be of that, otherwise spelled.
            hidden = self._alone.sub(lambda spans: b"\0" * len(spans[0]), data[written:])
            text = spelling.Text(data[:written] + hidden)
        for spans in self._spellings:
            places += spans.places(text, written)
        return sorted(places)


def _masked(data: bytes, places: list[tuple[int, int]], at: int, upto: int) -> bytes:
    """`data` from one point to another, with masks in these places; one for what overlaps."""
    parts: list[bytes] = []
    for begin, end in places:
        if begin >= upto:
            break
        if begin >= at or not parts:
            parts += [data[at:begin], MASK]
        at = max(at, end)
    return b"".join([*parts, data[at:upto]])


class Pump:
    """A small process that masks what a step writes, for as long as anything writes.

    A process of its own, because a server that a step leaves in the background goes on writing when
    the engine has ended; its output must neither be lost nor leak, and it must not die of SIGPIPE.
    """

    def __init__(self, masker: Masker, log: int) -> None:
        source, self.write_end = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(source, F_SETPIPE_SZ, PIPE)
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
        if _drain(masker, source, log, PIPE):
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
            fileio.write_all(log, masker.feed(data) if data else masker.flush())
        if not data:
            return True
        moved += len(data)
    return False

"""Files between a controller and this machine: what is there already is not sent again.

A file that is being received lies beside its place under a name made of its digest, so that a
transfer which was cut goes on where it was, and its place never holds half of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Callable, Iterator

BLOCK = 1 << 20
PARTIAL = re.compile(r"\.taskrunner-[0-9a-f]+\.part$")
"""Names of what is on its way here."""


def digest(path: str, tick: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of a file's content, in hexadecimal; `tick` is called on the way."""
    checksum = hashlib.sha256()
    for block in blocks(path):
        checksum.update(block)
        tick()
    return checksum.hexdigest()


def blocks(path: str) -> Iterator[bytes]:
    """The content of a file, in pieces."""
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            yield block


def listing(path: str) -> list[dict[str, Any]]:
    """The files at or below a path: `name` (relative, "" for the path itself), `size`, `mode`.

    A folder that is empty has an entry, too, whose `mode` says what it is. Links are followed; what is
    neither file nor folder is left out. Raises OSError.
    """
    entries: list[dict[str, Any]] = []
    if not os.path.isdir(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "neither a file nor a folder", path)
        return [_entry("", status)]
    seen = set()
    for folder, folders, names in os.walk(path, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()  # a link to a folder around it
            continue
        seen.add(real)
        folders.sort()
        relative = os.path.relpath(folder, path)
        if not folders and not names:
            entries.append(_entry("" if relative == "." else relative, os.stat(folder)))
        for name in sorted(names):
            if PARTIAL.match(name):
                continue
            inner = os.path.normpath(os.path.join(relative, name))
            status = os.stat(os.path.join(path, inner))
            if stat.S_ISREG(status.st_mode):
                entries.append(_entry(inner, status))
    return entries


def _entry(name: str, status: os.stat_result) -> dict[str, Any]:
    return {"name": name, "size": status.st_size, "mode": status.st_mode}


def _raise(error: OSError) -> None:
    raise error


class Receiver:
    """Takes files in pieces. Each that is on its way is locked: another sender has to wait for it.

    `tick` is called in the middle of long work.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._open: dict[str, int] = {}

    def missing(self, root: str, files: list[dict[str, Any]]) -> list[list[int]]:
        """Which of these files (name, size, mode, digest) have to be sent: [index, offset to begin at].

        Folders are made, and modes set, where that is all there is to do. Raises OSError.
        """
        wanted = []
        for index, file in enumerate(files):
            path = _place(root, file)
            if stat.S_ISDIR(file["mode"]):
                os.makedirs(path, exist_ok=True)
            elif self._same(path, file):
                os.chmod(path, file["mode"] & 0o777)
                os.utime(path)
            else:
                offset = 0
                with contextlib.suppress(FileNotFoundError):
                    offset = min(os.stat(partial(path, file["digest"])).st_size, file["size"])
                wanted.append([index, offset])
        return wanted

    def receive(self, root: str, file: dict[str, Any], offset: int, data: bytes) -> None:
        """Write a piece of a file; with its last one the file takes its place.

        Raises BlockingIOError when somebody else is sending it, OSError.
        """
        path = _place(root, file)
        beside = partial(path, file["digest"])
        if beside not in self._open:
            if os.path.lexists(path) and not os.path.isfile(path):
                raise OSError(errno.EINVAL, "exists already and is not a file", path)
            self._open[beside] = _continued(beside, offset)
        fd = self._open[beside]
        _write(fd, offset, data)
        if offset + len(data) < file["size"]:
            return
        del self._open[beside]
        try:
            whole = hashlib.sha256(data).hexdigest() if not offset else digest(beside, self._tick)
            if whole != file["digest"]:
                os.unlink(beside)
                raise OSError(errno.EIO, "the file changed while it was sent; send it again", path)
            os.fchmod(fd, file["mode"] & 0o777)
            os.rename(beside, path)
        finally:
            os.close(fd)

    def _same(self, path: str, file: dict[str, Any]) -> bool:
        return (
            os.path.isfile(path)
            and os.stat(path).st_size == file["size"]
            and digest(path, self._tick) == file["digest"]
        )


def unbundle(archive: IO[bytes], root: str, files: list[dict[str, Any]]) -> None:
    """Put files (name, size, mode, digest), which a zip archive has under their digests, below `root`.

    Raises OSError.
    """
    import zipfile

    receiver = Receiver(lambda: None)
    with zipfile.ZipFile(archive) as whole:
        for file in files:
            offset = 0
            with whole.open(file["digest"]) as content:
                while True:
                    data = content.read(BLOCK)
                    receiver.receive(root, file, offset, data)
                    offset += len(data)
                    if offset >= file["size"]:
                        break


def locked(path: str) -> int:
    """A descriptor to write a file with, that nobody else has. Raises BlockingIOError, OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had the lock before may have moved the file away.
        if os.fstat(fd).st_nlink:
            return fd
        raise BlockingIOError(errno.EAGAIN, "another process has just sent it", path)
    except OSError:
        os.close(fd)
        raise


def _continued(path: str, offset: int) -> int:
    """A descriptor to resume a file of at least `offset` bytes. Raises BlockingIOError, OSError."""
    fd = locked(path)
    size = os.fstat(fd).st_size
    if size >= offset:
        return fd
    # Whoever was sending it has come to the end, or has begun again.
    if not size:
        os.unlink(path)
    os.close(fd)
    raise BlockingIOError(errno.EAGAIN, "another process was sending it", path)


def _write(fd: int, offset: int, data: bytes) -> None:
    os.ftruncate(fd, offset)
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _place(root: str, file: dict[str, Any]) -> str:
    # A link is written through, as cp does.
    return os.path.realpath(os.path.join(root, file["name"]))


def partial(path: str, mark: str) -> str:
    """Where a file lies while it is on its way to `path`."""
    return os.path.join(os.path.dirname(path), ".taskrunner-%s.part" % mark[:24])

"""Files: written so that a crash cannot halve them, and nobody else can read them; read in parts."""

from __future__ import annotations

import contextlib
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator


def private_folder(path: str) -> None:
    """Make a folder, and those around it that are missing, which nobody else can look into."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    if above != path:
        private_folder(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        return
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def write_atomic(path: str, data: bytes, durable: bool = False) -> None:
    """Write a private file so that a reader sees all of it or the one before.

    `durable`: it must also be there after a loss of power.
    """
    temporary = temporary_name(path)
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def temporary_name(path: str) -> str:
    """A name beside `path` that nobody else uses, on whatever machine."""
    return "%s.%s.tmp" % (path, os.urandom(8).hex())


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_bytes(path: str) -> bytes:
    """The file's content, or nothing when it is not there."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def tail(path: str, lines: int = 20, limit: int = 8192, begin: int = 0) -> list[str]:
    """The last lines of a log behind `begin`, read from its end; undecodable bytes are replaced."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin, size - limit))
            data = file.read(limit)
    except OSError:
        return []
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    # A progress bar rewrites its line with carriage returns: only the last state is of use.
    return [line.rsplit("\r", 1)[-1] for line in text.splitlines()][-lines:]


def read_by_offset(path: str, offset: int, limit: int = 1 << 20) -> bytes:
    """Up to `limit` bytes from `offset`, which counts from the end where it is negative; nothing
    when the file is not there yet.
    """
    try:
        with open(path, "rb") as file:
            if offset < 0:
                offset = max(0, file.seek(0, os.SEEK_END) + offset)
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        return b""


@contextlib.contextmanager
def open_append(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)

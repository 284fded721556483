"""Where the state lives, and how a file is written so that a crash cannot halve it.

<root>/runs/<run id>/   plan.json  events.jsonl  logs/  steps/  outputs/  engine.json  engine.log  followers
<root>/journal/<key>.<machine>.jsonl   what is remembered of a task file between runs
<root>/locks/<key>.<machine>           held (flock) by the engine that runs the task file
<root>/unsettled/<run id>@<key>.<machine>   a run that has begun and is not settled
<root>/services/<name>.<project>.<machine>/   a service's record and its log
<root>/engine/<digest>/            on a node: the engine that a controller has shipped
<root>/files/<digest>              on a node: files that steps need, by their content
<root>/parts/ answers/ seats/ never/ claims/   on a node that single commands reach: see ask.py

Several machines may share a root (a home on NFS, EFS or FSx). What one of them has done or runs is no
business of the others, so the names say whose it is.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import os
import re

from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

PLAN = "plan.json"
EVENTS = "events.jsonl"
ENGINE = "engine.json"
EARLY = "cancel"
ENGINE_LOG = "engine.log"
FOLLOWERS, FOLLOWERS_AWAY = "followers", "followers-away"
"""Locked by who follows the run here, and by who does for a controller elsewhere and hears of it."""
RESERVE = "reserve"
RESERVE_BYTES = 64 * 1024


def default_root(environ: Any = os.environ) -> str:
    """The state root: `TASKRUNNER_HOME`, else `taskrunner` under the XDG state home.

    Raises OSError where it would be in the home of a user who has none.
    """
    home: str = environ.get("TASKRUNNER_HOME", "")
    if home:
        return os.path.abspath(os.path.expanduser(home))
    state = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    if not os.path.isabs(state):
        raise OSError(errno.ENOENT, "this user has no home folder, and HOME is not set", state)
    return os.path.join(state, "taskrunner")


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


def run_dir(root: str, run: str) -> str:
    """The directory of a run: the one that has its name, or this machine's own (see `claim`)."""
    mine = os.path.join(root, "runs", "%s@%s" % (run, processes.machine()))
    return mine if os.path.isdir(mine) else os.path.join(root, "runs", run)


def claim(root: str, run: str) -> str:
    """The directory of a run that one command starts under one id on several machines, which may share
    the root: the first has the run's name, another one a directory of its own. Raises OSError.
    """
    claims = os.path.join(root, "claims")
    private_folder(claims)
    try:
        os.symlink(processes.machine(), os.path.join(claims, run))  # made and told whose it is in one
    except FileExistsError:
        if os.readlink(os.path.join(claims, run)) != processes.machine():
            mine = os.path.join(root, "runs", "%s@%s" % (run, processes.machine()))
            private_folder(mine)
    return run_dir(root, run)


def root_of(directory: str) -> str:
    """The state root that a run directory belongs to."""
    return os.path.dirname(os.path.dirname(os.path.abspath(directory)))


def secrets_path(directory: str) -> str:
    """An empty file that is there as long as the plan in a run directory may hold secrets."""
    return os.path.join(root_of(directory), "secrets", os.path.basename(directory))


def own(key: str) -> str:
    """The name under which this machine keeps what belongs to a task file."""
    return "%s.%s" % (key, processes.machine())


def journal_path(root: str, key: str) -> str:
    return os.path.join(root, "journal", own(key) + ".jsonl")


def lock_path(root: str, key: str) -> str:
    return os.path.join(root, "locks", own(key))


def service_dir(root: str, project: str, name: str) -> str:
    """A service is its project's: another one may have a service of the same name."""
    known = slug(name)
    if known != name:
        known += "-%08x" % binascii.crc32(name.encode("utf-8", "surrogateescape"))
    return os.path.join(root, "services", own("%s.%s" % (known, project)))


def slug(text: str) -> str:
    """`text` as a file name: harmless characters only, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:80].lstrip(".") or "_"


def log_path(directory: str, index: int, step: str) -> str:
    """The log of a step: all output of its guard and commands, secrets masked."""
    return os.path.join(directory, "logs", "%03d-%s.log" % (index + 1, slug(step)))


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


def tail(path: str, lines: int = 20, limit: int = 8192) -> list[str]:
    """The last lines of a log, read from its end; undecodable bytes are replaced."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
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

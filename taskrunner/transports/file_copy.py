"""Files to a node and from it. Content that is there already is not sent; what was cut goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from taskrunner.engine.store import file_sync
from taskrunner.errors import StateError
from taskrunner.transports import replies
from taskrunner.transports.replies import Busy
from taskrunner.transports.staging import BY_HAND, Files, described

BLOCK = 1 << 20
BUSY = 0.3
GROWN = 64 << 20
"""Bytes by which a file may be longer than it was when it was listed."""
MODE, OF_DATA = 0o755, 0o644
"""Bits of a node's modes that count here: nobody else gets to write."""


class Session(Protocol):
    """What is asked of a conversation with a node."""

    @property
    def name(self) -> str:
        """The node, for messages."""

    def request(self, do: str, **about: Any) -> Any:
        """The answer to a question (see engine/node/requests.py)."""

    def ahead(self, paths: Sequence[str]) -> None:
        """Note which files will be asked for, one after the other."""

    def content(self, path: str, offset: int) -> Iterator[bytes | str]:
        """A file from an offset on, in pieces, then the digest of the whole."""


def put(source: Path, target: str, send: Callable[[str, Files], int]) -> int:
    """Copy a file or the content of a folder; the number of files that were sent.

    A `target` that ends with / is the folder to put it into. `send` brings files to below a folder, and is
    asked again while somebody else is at it. Raises UsageError, StateError.
    """
    if target.endswith("/"):
        target += source.name
    return patiently(lambda: send(target, described(source)))


def patiently(send: Callable[[], int]) -> int:
    """Send; again, while another command is sending the same: what it sends need not be sent again."""
    while True:
        try:
            return send()
        except Busy:
            time.sleep(BUSY)


def get(session: Session, source: str, target: str, name: str = "", data_only: bool = False) -> int:
    """Copy a file or the content of a folder from the node; the number of files that were fetched.

    A file goes into a `target` that is a folder, or ends with /, under `name` (default: its own). With
    `data_only`, nothing of it becomes executable, or has a name with a dot in front. Raises StateError,
    TargetError, Lost.
    """
    place, wanted = Path(target), []
    for file in replies.listing(session.name, session.request("listing", path=source)):
        if os.path.isabs(file["name"]) or ".." in Path(file["name"]).parts:
            raise StateError(f"{session.name}: it lists a file outside of {source}: {file['name']!r}")
        if data_only and any(part.startswith(".") for part in Path(file["name"]).parts):
            raise StateError(f"{session.name}: {source}: it lists a hidden name: {file['name']!r}", BY_HAND)
        if file["name"]:
            path, origin = place / file["name"], f"{source}/{file['name']}"
        else:
            inside = not stat.S_ISDIR(file["mode"]) and (target.endswith("/") or place.is_dir())
            path, origin = place / (name or Path(source).name) if inside else place, source
        try:
            if stat.S_ISDIR(file["mode"]):
                path.mkdir(parents=True, exist_ok=True)
            elif not _there(session, origin, file, path):
                wanted.append((origin, file, path))
        except OSError as error:
            raise StateError(f"{error.filename or path}: {error.strerror}") from error
    session.ahead([origin for origin, _, _ in wanted])
    fetched = 0
    for origin, file, path in wanted:
        try:
            while not _fetch(session, origin, file, path, OF_DATA if data_only else MODE):
                if _there(session, origin, file, path):
                    break  # another command has got it
            else:
                fetched += 1
        except OSError as error:
            raise StateError(f"{error.filename or path}: {error.strerror}") from error
    return fetched


def _there(session: Session, origin: str, file: dict[str, Any], place: Path) -> bool:
    if not place.is_file() or place.stat().st_size != file["size"]:
        return False
    return bool(session.request("digest", path=origin) == file_sync.digest(str(place)))


def _fetch(session: Session, origin: str, file: dict[str, Any], place: Path, mode: int) -> bool:
    """Get one file; False when another command was getting it, so that it may be here."""
    place = Path(os.path.realpath(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not place.is_file():
        raise StateError(f"{place}: exists already and is not a file")
    # Named after where it comes from: what a lost connection has cut is gone on with.
    mark = hashlib.sha256(f"{session.name}:{origin}".encode("utf-8", "surrogateescape")).hexdigest()
    partial = file_sync.partial(str(place), mark)
    try:
        fd = file_sync.locked(partial)
    except BlockingIOError:
        time.sleep(BUSY)
        return False
    with os.fdopen(fd, "r+b") as content:
        for _ in range(2):
            found = hashlib.sha256()
            for block in iter(lambda: content.read(BLOCK), b""):
                found.update(block)
            if shutil.disk_usage(place.parent).free < file["size"] - content.tell():
                raise StateError(f"{place}: not enough space for {file['size'] / 1e9:.1f} GB")
            digest: bytes | str = ""
            for digest in session.content(origin, content.tell()):
                if isinstance(digest, bytes):
                    if content.tell() + len(digest) > 2 * file["size"] + GROWN:
                        raise StateError(f"{session.name}: {origin}: the node sends more than the file holds")
                    content.write(digest)
                    found.update(digest)
            if found.hexdigest() == digest:
                os.fchmod(fd, file["mode"] & mode)
                content.flush()
                os.rename(partial, place)
                return True
            # What had been fetched before is of another version: from the beginning, then.
            content.seek(0)
            content.truncate()
    raise StateError(f"{session.name}: {origin}: it changed while it was fetched", "fetch it again")

"""Files to a node and from it. Content that is there already is not sent; what was cut goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from taskrunner.engine import exchange
from taskrunner.errors import StateError, UsageError
from taskrunner.transports.ssh.session import Busy, Session
from taskrunner.transports.staging import Files, described

BLOCK = 1 << 20
BUSY = 0.3
AHEAD = 256
"""Pieces that may be on their way before an answer is waited for: errors show early, memory stays."""


def put(session: Session, source: Path, target: str) -> int:
    """Copy a file or the content of a folder; the number of files that were sent.

    A `target` that ends with / is the folder to put it into. Raises UsageError, StateError, Lost.
    """
    if target.endswith("/"):
        target += source.name
    return send(session, target, described(source))


def send(session: Session, root: str, files: Files) -> int:
    """Bring files to below `root` on the node, those that are not there; returns how many."""
    while True:
        try:
            return _send(session, root, files)
        except Busy:
            # Another command is sending the same; what it sends need not be sent again.
            time.sleep(BUSY)


def _send(session: Session, root: str, files: Files) -> int:
    wanted = session.request("missing", root=root, files=[file for _, file in files])
    numbers: set[int] = set()
    for index, offset in wanted:
        path, file = files[index]
        try:
            with path.open("rb") as content:
                content.seek(offset)
                while True:
                    data = content.read(min(BLOCK, file["size"] - offset))
                    if not data and offset < file["size"]:
                        raise UsageError(f"{path}: it has become shorter while it was sent")
                    numbers.add(session.post("receive", data, root=root, file=file, offset=offset))
                    offset += len(data)
                    if len(numbers) >= AHEAD:
                        session.answers(numbers)
                    if offset >= file["size"] or not data:
                        break
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
    session.answers(numbers)
    return len(wanted)


def get(session: Session, source: str, target: str, name: str = "") -> int:
    """Copy a file or the content of a folder from the node; the number of files that were fetched.

    A file goes into a `target` that is a folder, or ends with /, under `name` (default: its own).
    Raises StateError, Lost.
    """
    fetched = 0
    place = Path(target)
    for file in session.request("listing", path=source):
        if os.path.isabs(file["name"]) or ".." in Path(file["name"]).parts:
            raise StateError(f"{session.endpoint}: it offers a file outside of {source}: {file['name']!r}")
        if file["name"]:
            path, origin = place / file["name"], f"{source}/{file['name']}"
        else:
            inside = not stat.S_ISDIR(file["mode"]) and (target.endswith("/") or place.is_dir())
            path, origin = place / (name or Path(source).name) if inside else place, source
        try:
            if stat.S_ISDIR(file["mode"]):
                path.mkdir(parents=True, exist_ok=True)
            else:
                while not _there(session, origin, file, path):
                    if _fetch(session, origin, file, path):
                        fetched += 1
                        break
        except OSError as error:
            raise StateError(f"{error.filename or path}: {error.strerror}") from error
    return fetched


def _there(session: Session, origin: str, file: dict[str, Any], place: Path) -> bool:
    if not place.is_file() or place.stat().st_size != file["size"]:
        return False
    return bool(session.request("digest", path=origin) == exchange.digest(str(place)))


def _fetch(session: Session, origin: str, file: dict[str, Any], place: Path) -> bool:
    """Get one file; False when another command was getting it, so that it may be here."""
    place = Path(os.path.realpath(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not place.is_file():
        raise StateError(f"{place}: there is something else of this name, which is no file")
    # Named after where it comes from: what a lost connection has cut is gone on with.
    mark = hashlib.sha256(f"{session.endpoint}:{origin}".encode("utf-8", "surrogateescape")).hexdigest()
    partial = exchange.partial(str(place), mark)
    try:
        fd = exchange.locked(partial)
    except BlockingIOError:
        time.sleep(BUSY)
        return False
    with os.fdopen(fd, "r+b") as content:
        for _ in range(2):
            found = hashlib.sha256()
            for block in iter(lambda: content.read(BLOCK), b""):
                found.update(block)
            if shutil.disk_usage(place.parent).free < file["size"] - content.tell():
                raise StateError(f"{place}: no room for {file['size'] / 1e9:.1f} GB")
            digest: bytes | str = ""
            for digest in session.pieces("send", path=origin, offset=content.tell()):
                if isinstance(digest, bytes):
                    content.write(digest)
                    found.update(digest)
            if found.hexdigest() == digest:
                os.fchmod(fd, file["mode"] & 0o777)
                content.flush()
                os.rename(partial, place)
                return True
            # What had been fetched before is of another version: from the beginning, then.
            content.seek(0)
            content.truncate()
    raise StateError(f"{session.endpoint}: {origin}: it changes while it is fetched", "get it once more")

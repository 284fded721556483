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
        if file["name"]:
            path, origin = place / file["name"], f"{source}/{file['name']}"
        else:
            inside = not stat.S_ISDIR(file["mode"]) and (target.endswith("/") or place.is_dir())
            path, origin = place / (name or Path(source).name) if inside else place, source
        try:
            if stat.S_ISDIR(file["mode"]):
                path.mkdir(parents=True, exist_ok=True)
            elif not _there(session, origin, file, path):
                _fetch(session, origin, file, path)
                fetched += 1
        except OSError as error:
            raise StateError(f"{error.filename or path}: {error.strerror}") from error
    return fetched


def _there(session: Session, origin: str, file: dict[str, Any], place: Path) -> bool:
    if not place.is_file() or place.stat().st_size != file["size"]:
        return False
    return bool(session.request("digest", path=origin) == exchange.digest(str(place)))


def _fetch(session: Session, origin: str, file: dict[str, Any], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # Named after where it comes from: what a lost connection has cut is gone on with.
    mark = hashlib.sha256(f"{session.endpoint}:{origin}:{file['size']}".encode("utf-8", "surrogateescape"))
    partial = place.with_name(f".{place.name[:80]}.{mark.hexdigest()[:16]}.part")
    with partial.open("ab") as content:
        if shutil.disk_usage(place.parent).free < file["size"] - content.tell():
            size = file["size"] / 1e9
            raise StateError(f"{place}: no room for {size:.1f} GB")
        for data in session.pieces("send", path=origin, offset=content.tell()):
            content.write(data)
    os.chmod(partial, stat.S_IMODE(file["mode"]))
    partial.rename(place)

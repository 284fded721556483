"""Files to a node over its session: those that are not there, from where they were cut on."""

from __future__ import annotations

from taskrunner.errors import UsageError
from taskrunner.transports import replies
from taskrunner.transports.file_copy import BLOCK
from taskrunner.transports.staging import Files
from taskrunner.transports.stream.session import Session

AHEAD = 256
"""Pieces that may be on their way before an answer is waited for: errors show early, memory stays."""


def send(session: Session, root: str, files: Files) -> int:
    """Bring files to below `root`, those that are not there; returns how many.

    Raises Busy, UsageError, StateError, Lost.
    """
    reply = session.request("missing", root=root, files=[file for _, file in files])
    wanted = replies.missing(session.name, reply, files)
    numbers: set[int] = set()
    for index, offset in wanted:
        path, file = files[index]
        try:
            with path.open("rb") as content:
                content.seek(offset)
                while True:
                    data = content.read(min(BLOCK, file["size"] - offset))
                    if not data and offset < file["size"]:
                        raise UsageError(f"{path}: the file became shorter while it was sent")
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

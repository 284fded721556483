"""Files to an instance and from it: together in an archive, or in one answer."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taskrunner.errors import UsageError
from taskrunner.transports import replies
from taskrunner.transports.ssm.client import PARTS_LIMIT, InstanceClient, drained
from taskrunner.transports.ssm.request import Pending
from taskrunner.transports.staging import Files

AT_ONCE = 200
"""Files of which one question tells: it is a command, which may not be long."""


def send(client: InstanceClient, root: str, files: Files) -> int:
    """Bring files to below `root`, those that are not there; returns how many.

    Raises Busy, UsageError, StateError, Lost, TargetError.
    """
    sent = 0
    for first in range(0, len(files), AT_ONCE):
        some = files[first : first + AT_ONCE]
        reply = client.request("missing", root=root, files=[file for _, file in some])
        wanted = [some[index] for index, _ in replies.missing(client.name, reply, some)]
        if wanted:
            with tempfile.TemporaryDirectory(prefix="taskrunner-") as folder:
                _bring(client, root, wanted, Path(folder) / "files.zip")
        sent += len(wanted)
    return sent


def _bring(client: InstanceClient, root: str, wanted: Files, archive: Path) -> None:
    kind = zipfile.ZIP_STORED if client.bucket is not None else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(archive, "w", kind) as whole:
        for path, file in {file["digest"]: (path, file) for path, file in wanted}.values():
            try:
                whole.write(path, file["digest"])
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}") from error
    fields: dict[str, Any] = {"root": root, "files": [file for _, file in wanted]}
    if client.bucket is not None:
        key = client.bucket.once(archive)
        try:
            client.request("unbundle", **fields, digest=Path(key).name, url=client.bucket.signed(key))
        finally:
            client.bucket.delete([key])
        return
    if archive.stat().st_size > 2 * PARTS_LIMIT:
        client.too_large(archive.stat().st_size)
    data = zlib.compress(archive.read_bytes(), 1)
    digest = hashlib.sha256(data).hexdigest()
    client.request("unbundle", **fields, digest=digest, parts=client.send_parts(data, digest))


class Reader:
    """A node's files, as transports/file_copy.py asks for them: many come in one answer."""

    def __init__(self, client: InstanceClient) -> None:
        self.name = client.name
        self.request = client.request
        self._client = client
        self._coming: Iterator[tuple[str, bytes | str]] = iter(())

    def ahead(self, paths: Sequence[str]) -> None:
        """Note which files will be asked for, one after the other."""
        self._coming = self._files(list(paths), 0)

    def content(self, path: str, offset: int) -> Iterator[bytes | str]:
        """A file from an offset on, in pieces, then the digest of the whole."""
        data = self._coming if not offset else iter(())
        first = next(data, None)
        if first is None or first[0] != path:
            # It is asked for once more, or from its middle on; so are those that were to follow.
            self._coming = data = self._files([path], offset)
            first = next(data)
        yield first[1]
        while isinstance(first[1], bytes):
            first = next(data)
            yield first[1]

    def _files(self, paths: list[str], offset: int) -> Iterator[tuple[str, bytes | str]]:
        while paths:
            answer = drained(self._client.wait(partial(self._ask, paths, offset)))
            number = 0
            for message, data in answer.frames:
                if "digest" in message:
                    yield paths[number], str(message["digest"])
                    number += 1
                else:
                    yield paths[number], data
            number, offset = answer.message["ok"]
            paths = paths[number:]

    def _ask(self, paths: list[str], offset: int) -> Pending:
        return self._client.post("send", {"paths": paths[:AT_ONCE], "offset": offset}, grant=True)

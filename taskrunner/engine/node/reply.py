"""An answer that fits through a narrow door: Run Command keeps the first 24,000 characters of a command.

On stdout stands one line: `taskrunner LENGTH TEXT`, where TEXT has LENGTH characters, which tell whether
it is whole, and is base64 of zlib of frames (frames.py). The last frame is the answer itself. What is too
long for that goes to S3 in segments, where the controller grants that (an upload by POST with its policy,
so that this machine needs no credentials); else into a file here, which is asked for piece by piece.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
import zlib

from ..store import fileio
from .frames import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OUTPUT_LIMIT_BYTES = 17_400
"""Bytes whose base64, with the line around it, is within 24,000 characters."""
REPLY_LIMIT_BYTES = 1 << 20
"""Bytes that one answer holds where there is no S3: more would take minutes to ask for."""
SEGMENT = 8 << 20
UPLOAD_LIMIT_BYTES = 256 << 20
"""Bytes of a segment in S3, and of all segments of an answer, before they are compressed."""
FORGET = 3600.0
"""Seconds after which nobody asks any more for what was kept."""


class Refused(Exception):
    """S3 does not take what it was to be given: the grant has expired, or the bucket is not reached."""


class ReplyWriter:
    """Takes the frames of an answer. `full` is true when it should end."""

    def __init__(self, root: str, token: str, grant: dict[str, Any] | None) -> None:
        self.full = False
        self.segments = 0
        self.waiting = 0
        self._root, self._token = root, token
        self._grant = grant
        self._refused = ""
        self._frames: list[bytes] = []
        self._taken = 0

    def write(self, data: bytes) -> None:
        self._frames.append(data)
        self.waiting += len(data)
        self._taken += len(data)
        if self._grant and self.waiting >= SEGMENT:
            self.flush()
        self.full = self._taken >= (UPLOAD_LIMIT_BYTES if self._grant else REPLY_LIMIT_BYTES)

    def flush(self) -> None:
        """Bring what waits to S3, if that is granted."""
        if not self._grant or not self.waiting:
            return
        try:
            name = "%s/%05d" % (self._token, self.segments)
            upload(self._grant, name, zlib.compress(b"".join(self._frames), 1))
        except Refused as error:
            # What waits goes the other way.
            self._grant, self._refused = None, str(error)
            return
        self.segments += 1
        self.waiting = 0
        self._frames.clear()

    def close(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Print the answer, or where it is."""
        message = dict(message, segments=self.segments)
        if self._refused:
            message["refused"] = self._refused
        text = self._packed(message, payload)
        if len(text) > OUTPUT_LIMIT_BYTES and self._grant:
            if payload:
                self.write(pack({"payload": True}, payload))
            self.flush()
            message.update(segments=self.segments, refused=self._refused or None)
            text = self._packed(message, payload if self._refused else b"")
        if len(text) > OUTPUT_LIMIT_BYTES:
            kept = self._kept(text)
            text = zlib.compress(
                pack({"kept": kept, "whole": len(text)}, text[: OUTPUT_LIMIT_BYTES - 200]), 1
            )
        say(text)

    def _packed(self, message: dict[str, Any], payload: bytes) -> bytes:
        return zlib.compress(b"".join(self._frames) + pack(message, payload))

    def _kept(self, text: bytes) -> str:
        folder = os.path.join(self._root, "answers")
        fileio.private_folder(folder)
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.stat(os.path.join(folder, name)).st_mtime < time.time() - FORGET:
                    os.unlink(os.path.join(folder, name))
        fileio.write_atomic(os.path.join(folder, self._token), text)
        return self._token


def say(text: bytes) -> None:
    line = base64.b64encode(text)
    fileio.write_all(1, b"taskrunner %d %s\n" % (len(line), line))


def piece(root: str, token: str, offset: int) -> bytes:
    """What comes next of an answer that is kept here."""
    return fileio.read_by_offset(
        os.path.join(root, "answers", os.path.basename(token)), offset, OUTPUT_LIMIT_BYTES - 200
    )


def upload(grant: dict[str, Any], name: str, data: bytes) -> None:
    """Put an object into S3 by an HTTP POST with a signed policy. Raises Refused.

    See "Browser-Based Uploads Using POST" in the Amazon S3 API reference: fields in a form, the file last.
    """
    import http.client
    from urllib.parse import urlsplit

    boundary = "taskrunner-%s" % os.urandom(12).hex()
    fields = dict(grant["fields"], key=grant["prefix"] + name)
    form = "".join(
        '--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, key, value)
        for key, value in fields.items()
    )
    head = '--%s\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n' % boundary
    body = (form + head + "Content-Type: application/octet-stream\r\n\r\n").encode()
    body += data + ("\r\n--%s--\r\n" % boundary).encode()
    address = urlsplit(grant["url"])
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    error_text = ""
    for pause in (0.5, 2.0, 5.0, 0.0):
        try:
            connection = kind(address.netloc, timeout=60)
            try:
                headers = {"Content-Type": "multipart/form-data; boundary=" + boundary}
                connection.request("POST", address.path or "/", body, headers)
                response = connection.getresponse()
                text = response.read().decode("utf-8", "replace")
            finally:
                connection.close()
            if response.status < 300:
                return
            error_text = "HTTP %d %s" % (response.status, _code(text))
            if response.status < 500 and response.status not in (408, 429):
                break
        except (OSError, http.client.HTTPException) as error:
            error_text = "%s: %s" % (type(error).__name__, error)
        time.sleep(pause)
    raise Refused(error_text)


def _code(text: str) -> str:
    return text.partition("<Code>")[2].partition("</Code>")[0]

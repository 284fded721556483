"""A request of a client, and what of it may go on: RFC 9112, and nginx where that leaves a choice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

Headers = list[tuple[str, str]]
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::[0-9]{0,5})?")
TARGET = re.compile(r"/[\x21\x24-\x7e\x22]*")
ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""Headers that belong to a connection, not to a message (RFC 9110, section 7.6.1)."""
NOT_PASSED_ON = HOP_BY_HOP | {"host", "content-length", "expect", "x-data-parallel-rank"}
"""The same of requests; the last one names an engine within a server, which differ from server to server."""


class Refused(Exception):
    """A request that is not answered otherwise: the status, and what the client is told."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or []


@dataclass
class Request:
    """One request. `path` is decoded and normalised, `received` a time of time.perf_counter."""

    method: str
    target: str
    version: str
    headers: Headers
    keep: bool
    path: str = ""
    query: str = ""
    body: bytes = b""
    received: float = 0.0
    problem: Refused | None = None
    held: list[bytes] = field(default_factory=list)

    def header(self, name: str) -> str:
        """The first header of that name (in small letters), or ""."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def count(self, name: str) -> int:
        """How often a header is there."""
        return sum(key.lower() == name for key, _ in self.headers)

    @property
    def expects_continue(self) -> bool:
        return self.version == "1.1" and self.header("expect").lower() == "100-continue"

    def check(self) -> None:
        """See that its head is one that every server understands in the same way. Raises Refused."""
        if self.version not in ("1.0", "1.1"):
            raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "the HTTP version must be 1.0 or 1.1")
        hosts = self.count("host")
        if hosts > 1 or (not hosts and self.version == "1.1") or not HOST.fullmatch(self.header("host")):
            raise Refused(HTTPStatus.BAD_REQUEST, "a request needs one Host header with a valid host")
        coding = self.header("transfer-encoding")
        if self.count("transfer-encoding") > 1 or (coding and self.version == "1.0"):
            raise Refused(HTTPStatus.BAD_REQUEST, "invalid Transfer-Encoding")
        if coding and coding.strip().lower() != "chunked":
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "the only supported transfer coding is chunked")
        if self.count("content-length") > 1 or (coding and self.count("content-length")):
            raise Refused(HTTPStatus.BAD_REQUEST, "the length of the body is given twice")
        length = self.header("content-length")
        if self.count("content-length") and not re.fullmatch(r"[0-9]{1,18}", length):
            raise Refused(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
        if self.header("expect") and self.header("expect").lower() != "100-continue":
            raise Refused(HTTPStatus.EXPECTATION_FAILED, "the only supported expectation is 100-continue")
        self.path, self.query = normal(self.target)


def normal(target: str) -> tuple[str, str]:
    """The path that a target means, decoded once and without empty and dot segments, and its query.

    Raises Refused for what is no path: the URL of another server, a fragment, half an escape.
    """
    if not TARGET.fullmatch(target):
        raise Refused(HTTPStatus.BAD_REQUEST, "the request target must be a path, as in /v1/completions")
    raw, _, query = target.partition("?")
    if ESCAPE.search(raw):
        raise Refused(HTTPStatus.BAD_REQUEST, "the path has an incomplete percent escape")
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise Refused(HTTPStatus.BAD_REQUEST, "the path is not UTF-8") from None
    if not path.isprintable() or "\\" in path:
        raise Refused(HTTPStatus.BAD_REQUEST, "the path has a character that is not allowed")
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if not kept:
                raise Refused(HTTPStatus.BAD_REQUEST, "the path leads above the root")
            kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    end = "/" if kept and segments[-1] in ("", ".", "..") else ""
    return "/" + "/".join(kept) + end, query


def passed_on(headers: Headers, left_out: set[str]) -> Headers:
    """The headers that go on to the next hop: not these, nor what `Connection` names."""
    named = {
        word.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for word in value.split(",")
    }
    return [(name, value) for name, value in headers if name.lower() not in left_out | named]

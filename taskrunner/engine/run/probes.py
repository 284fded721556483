"""Questions to the world that `ready` and `wait_for` ask until the answer is yes."""

from __future__ import annotations

import os

from . import patterns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping

ANSWER_WITHIN = 5.0
KINDS = ("http", "tcp", "listen", "file", "log")


def probe(wanted: Mapping[str, Any], folder: str, own_log: str = "") -> str:
    """Ask once. Returns "" when the answer is yes, else what is missing, in words.

    `wanted` has one of `http` (a URL that answers 2xx, or `status`), `tcp` ("host:port"), `file`
    (a path that exists) and `log` ({"path", "pattern"}; the path is `own_log` when it has none).
    Relative paths start at `folder`.
    """
    if "http" in wanted:
        return _http(wanted["http"], wanted.get("status"))
    if "tcp" in wanted:
        return _tcp(wanted["tcp"])
    if "file" in wanted:
        path = os.path.join(folder, os.path.expanduser(wanted["file"]))
        return "" if os.path.exists(path) else path + " does not exist"
    path = os.path.join(folder, os.path.expanduser(wanted["log"].get("path") or own_log))
    pattern = wanted["log"]["pattern"]
    try:
        matches = patterns.found_in(pattern, path)
    except (OSError, patterns.TooSlow) as error:
        return "%s: %s" % (path, getattr(error, "strerror", None) or error)
    return "" if matches else "%s does not match %r" % (path, pattern)


def describe(wanted: Mapping[str, Any]) -> str:
    """A probe in a few words, for events and messages."""
    for kind in KINDS[:-1]:
        if kind in wanted:
            return "%s %s" % (kind, wanted[kind])
    return "log %r" % wanted["log"]["pattern"]


def address(wanted: Mapping[str, Any]) -> tuple[str, int] | None:
    """The host and port that a probe asks, when it asks one."""
    if "tcp" in wanted:
        return _host_port(wanted["tcp"])
    if "http" in wanted:
        from urllib.parse import urlsplit

        url = urlsplit(wanted["http"])
        return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    return None


def listening(host: str, port: int) -> bool:
    import socket  # slow, and few runs have a probe

    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


def _tcp(text: str) -> str:
    import socket

    host, port = _host_port(text)
    try:
        with socket.create_connection((host, port), timeout=ANSWER_WITHIN):
            return ""
    except OSError as error:
        return "%s:%d: %s" % (host, port, error)


def _http(url: str, status: int | None) -> str:
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, build_opener

    try:
        # Never through a proxy: what is asked is whether that very server answers.
        with build_opener(ProxyHandler({})).open(url, timeout=ANSWER_WITHIN) as answer:
            code = answer.status
    except HTTPError as error:
        code = error.code
    except (URLError, OSError, ValueError) as error:
        return "%s: %s" % (url, getattr(error, "reason", error))
    except Exception as error:  # http.client raises its own kind for a garbled answer
        return "%s: %s" % (url, type(error).__name__)
    good = code == status if status else 200 <= code < 300
    return "" if good else "%s returned HTTP %d" % (url, code)

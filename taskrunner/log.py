"""The controller's log: connections, retries, throttling and what is shipped to nodes.

It is silent until `configure` is called: structlog is imported there. Events
have a dotted name (`ssh.connected`) and fields. Secrets of plans and passwords in URLs are masked.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from taskrunner.engine.run.masking import Masker

Level = Literal["debug", "info", "warning"]

_logger: Any = None
_stream: IO[str] | None = None
_secrets: set[str] = set()
_lock = _thread.allocate_lock()  # threading takes a while to import
_masker: Masker | None = None


def configure(level: Level = "info", file: str | Path = "", as_json: bool = False) -> None:
    """Log events of this level and above to stderr, or append them to a file that only its owner reads.

    As lines of JSON, or for people. Raises OSError when the file cannot be opened.
    """
    global _logger, _stream
    close()
    import structlog

    def private(path: str, flags: int) -> int:
        return os.open(path, flags, 0o600)

    _stream = open(file, "a", encoding="utf-8", opener=private) if file else None  # noqa: SIM115
    shown: Any = structlog.processors.JSONRenderer()
    if not as_json:
        shown = structlog.dev.ConsoleRenderer(colors=not file and sys.stderr.isatty())
    _logger = structlog.wrap_logger(
        structlog.WriteLogger(_stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=False),
            _masked,
            shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    with _lock:
        _mask()


def close() -> None:
    """Log nothing from now on."""
    global _logger, _stream
    _logger = None
    if _stream is not None:
        with contextlib.suppress(OSError):
            _stream.close()
        _stream = None


def protect(plan: Mapping[str, Any]) -> None:
    """Mask the secrets of this plan from now on."""
    from taskrunner.engine.run.masking import secrets_of

    with _lock:
        before = len(_secrets)
        _secrets.update(secrets_of(plan, os.environ))
        if len(_secrets) > before:
            _mask()


def _mask() -> None:
    global _masker
    if _logger is not None:
        from taskrunner.engine.run.masking import Masker

        _masker = Masker(_secrets)


def debug(event: str, **about: object) -> None:
    _log("debug", event, about)


def info(event: str, **about: object) -> None:
    _log("info", event, about)


def warning(event: str, **about: object) -> None:
    _log("warning", event, about)


def _log(level: Level, event: str, fields: dict[str, object]) -> None:
    if _logger is not None:
        # A full disk or a closed stream costs the log, never the run.
        with contextlib.suppress(OSError, ValueError):
            getattr(_logger, level)(event, **fields)


def _masked(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No secret, and nothing that a terminal obeys: texts come from nodes, too."""
    from taskrunner.engine.run.masking import without_passwords

    for name, value in event.items():
        if name not in ("event", "level", "timestamp") and not isinstance(value, (int, float)):
            text = without_passwords(str(value))
            text = _masker.text(text) if _masker else text
            event[name] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return event

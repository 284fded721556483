"""A step's `files` and `outputs` on the machine it runs on: content that is there is not copied."""

from __future__ import annotations

import filecmp
import os
import shutil

from .context import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .context import Context


def place(ctx: Context, files: list[dict[str, Any]]) -> None:
    """Copy each file or folder to where the step needs it."""
    _each(ctx, files, "files")


def collect(ctx: Context, outputs: list[dict[str, Any]]) -> None:
    """Copy each result of the step to where it is wanted."""
    _each(ctx, outputs, "outputs")


def _each(ctx: Context, pairs: list[dict[str, Any]], key: str) -> None:
    for pair in pairs:
        source, target = ctx.path(pair["from"]), ctx.path(pair["to"])
        try:
            _copy(source, target)
        except OSError as error:
            detail = "%s: cannot copy %s to %s: %s" % (key, source, target, error.strerror or error)
            raise StepError(key, detail) from error


def _copy(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        for name in sorted(os.listdir(source)):
            _copy(os.path.join(source, name), os.path.join(target, name))
        return
    if os.path.isdir(target):
        target = os.path.join(target, os.path.basename(source))
    if os.path.exists(target) and filecmp.cmp(source, target, shallow=False):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = "%s.%d.tmp" % (target, os.getpid())
    try:
        shutil.copy2(source, temporary)
        os.rename(temporary, target)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise

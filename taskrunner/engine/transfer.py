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


def place(ctx: Context, step: dict[str, Any]) -> bool:
    """Copy each file or folder to where the step needs it; False when all was there."""
    return _each("files", step, "", ctx.folder(step))


def collect(ctx: Context, step: dict[str, Any]) -> bool:
    """Copy each result of the step to where it is wanted, from the folder of the run on."""
    return _each("outputs", step, ctx.folder(step), ctx.plan["cwd"])


def _each(key: str, step: dict[str, Any], source_folder: str, target_folder: str) -> bool:
    changed = False
    for pair in step[key]:
        source = os.path.join(source_folder, os.path.expanduser(pair["from"]))
        target = os.path.join(target_folder, os.path.expanduser(pair["to"]))
        try:
            changed = _copy(source, target, pair.get("name") or os.path.basename(source)) or changed
        except OSError as error:
            detail = "%s: cannot copy %s to %s: %s" % (key, source, target, error.strerror or error)
            raise StepError(key, detail) from error
    return changed


def _copy(source: str, target: str, own_name: str) -> bool:
    if os.path.isdir(source):
        changed = not os.path.isdir(target)
        os.makedirs(target, exist_ok=True)
        for name in sorted(os.listdir(source)):
            changed = _copy(os.path.join(source, name), os.path.join(target, name), name) or changed
        return changed
    if os.path.isdir(target) or target.endswith("/"):
        target = os.path.join(target, own_name)
    if os.path.exists(target) and filecmp.cmp(source, target, shallow=False):
        return False
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = "%s.%d.tmp" % (target, os.getpid())
    try:
        shutil.copy2(source, temporary)
        os.rename(temporary, target)
        return True
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise

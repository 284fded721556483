"""A step's `files` and `outputs` on the machine it runs on: content that is there is not copied."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil

from ..store import file_sync, fileio
from .context import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from ..plan import FilePair, Step
    from .context import Context


def place(ctx: Context, step: Step) -> bool:
    """Copy each file or folder to where the step needs it; False when all was there."""
    return _each("files", step["files"], "", ctx.folder(step), ctx.begins)


def placed(ctx: Context, step: Step) -> bool:
    """Whether all is there already. Nothing is changed; a node, which has not been sent it, cannot tell."""

    def begins() -> None:
        raise StepError("files", "something is to be copied")

    try:
        return not _each("files", step["files"], "", ctx.folder(step), begins)
    except StepError:
        return False


def collect(ctx: Context, step: Step) -> bool:
    """Copy each result of the step to where it is wanted, from the folder of the run on."""
    return _each("outputs", step["outputs"], ctx.folder(step), ctx.plan["cwd"], lambda: None)


def key(ctx: Context, step: Step) -> str:
    """The identity of a step with `files`: another content makes it another step, here as on nodes."""
    contents = [_content(pair) for pair in step["files"]]
    return hashlib.sha256("\0".join([step["key"], *contents]).encode("utf-8", "surrogateescape")).hexdigest()


def _content(pair: FilePair) -> str:
    """What tells the content of a file or folder from any other; that of a node's files is known already."""
    if "content" in pair:
        return pair["content"]
    source = os.path.expanduser(pair["from"])
    try:
        return "\0".join(
            "%s %o %s"
            % (file["name"], file["mode"] & 0o777, _digest(os.path.join(source, file["name"]).rstrip("/")))
            for file in file_sync.listing(source)
        )
    except OSError:
        return ""  # placing it will tell


def _digest(path: str) -> str:
    return "" if os.path.isdir(path) else file_sync.digest(path)


def _each(
    kind: str, pairs: list[FilePair], source_folder: str, target_folder: str, begins: Callable[[], None]
) -> bool:
    changed = False
    for pair in pairs:
        source = os.path.join(source_folder, os.path.expanduser(pair["from"]))
        target = os.path.join(target_folder, os.path.expanduser(pair["to"]))
        try:
            changed = _copy(source, target, pair.get("name") or os.path.basename(source), begins) or changed
        except OSError as error:
            detail = "%s: cannot copy %s to %s: %s" % (kind, source, target, error.strerror or error)
            raise StepError(kind, detail) from error
    return changed


def _copy(source: str, target: str, own_name: str, begins: Callable[[], None]) -> bool:
    """Copy a file or folder unless it is there; `begins` is called before anything changes."""
    if os.path.isdir(source):
        changed = not os.path.isdir(target)
        if changed:
            begins()
        os.makedirs(target, exist_ok=True)
        for name in sorted(os.listdir(source)):
            inner = os.path.join(source, name)
            changed = _copy(inner, os.path.join(target, name), name, begins) or changed
        return changed
    if os.path.isdir(target) or target.endswith("/"):
        target = os.path.join(target, own_name)
    if os.path.exists(target) and filecmp.cmp(source, target, shallow=False):
        return False
    begins()
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = fileio.temporary_name(target)
    try:
        shutil.copy2(source, temporary)
        os.rename(temporary, target)
        return True
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise

"""The packs: the task files that come with taskrunner, in a checkout and in an installed wheel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from taskrunner.errors import NotFoundError, closest


class Pack(NamedTuple):
    """A task file that comes with taskrunner."""

    name: str
    path: Path

    @property
    def description(self) -> str:
        data = json.loads(self.path.read_text(encoding="utf-8"))
        return str(data.get("metadata", data).get("description", ""))


def folder() -> Path:
    """The folder of the packs: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "tasks"
    return installed if installed.is_dir() else package.parent / "tasks"


def schema_path(kind: str = "task-file") -> Path:
    """The JSON Schema of a kind of file: task-file or nodes."""
    return folder() / "schema" / f"{kind}.schema.json"


def packs() -> Iterator[Pack]:
    """All packs, by name."""
    skipped = {folder() / "schema", folder() / "plans", folder() / "include"}
    for path in sorted(folder().rglob("*.json"), key=lambda path: path.stem):
        if skipped.isdisjoint(path.parents):
            yield Pack(path.stem, path)


def find(name: str, others: Iterable[str] = ()) -> Path:
    """The task file that a user means: a path (a pipe, too), a name under ./tasks, or a pack's name.

    Raises NotFoundError with the closest names, `others` that may be meant among them.
    """
    given = Path(name)
    for path in (given, Path(f"{name}.json"), Path("tasks") / given, Path("tasks") / f"{name}.json"):
        if path.is_file() or path.is_fifo() or path.is_char_device():
            return path
    by_name = {pack.name: pack.path for pack in packs()}
    stem = given.name.removesuffix(".json")
    # `tasks/NAME.json` means the pack also where there is no folder of that name.
    if stem in by_name and given.parent.name in ("", "tasks"):
        return by_name[stem]
    if given.is_dir():
        raise NotFoundError(f"{name} is a folder, not a task file")
    nearby = [path.stem for path in [*Path().glob("*.json"), *Path("tasks").glob("*.json")]]
    hint = closest(stem, [*by_name, *nearby, *others]) or "`taskrunner packs` lists the packs"
    raise NotFoundError(f"no such task file or pack: {name!r}", hint)

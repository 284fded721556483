"""`include` and `extends`: what several task files share is defined once.

An included file has `variables`, `services` and `steps`, and may include others. A service or a step that
extends one of these has all its members but those that it gives itself. Of the variables, a file has those
that it uses.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner.errors import NotFoundError, Problem, TaskFileError, closest, in_order
from taskrunner.model.document import SHARED, Document, Place, accepted

MOST_FILES = 64
LARGEST = 1 << 20
"""Bytes of an included file."""
MOST_TEXT = 16 << 20
"""Bytes of the tasks when everything is in its place: a few small files can stand for very much."""
DEFINED = {"services": "service", "steps": "step"}


class Source(NamedTuple):
    """Where a value is written."""

    document: Document
    place: Place


Members = tuple[dict[str, Any], dict[str, Source]]
"""The members of an object, and where each is written."""


def expand(document: Document, folder: Path) -> None:
    """Put what a document includes and extends into its data. Raises TaskFileError."""
    expansion = _Expansion(document, folder)
    expansion.run()
    if expansion.problems:
        raise TaskFileError(in_order(expansion.problems))


class _Expansion:
    def __init__(self, document: Document, folder: Path) -> None:
        self.document, self.folder = document, folder
        self.folders: dict[Document, Path] = {document: folder}
        self.paths: set[Path] = set()
        self.problems: list[Problem] = []
        self.defined: dict[str, dict[str, Source]] = {kind: {} for kind in DEFINED}
        self.variables: dict[str, Source] = {}

    def run(self) -> None:
        path = self.folder / Path(self.document.name).name
        self._read(self.document, self.folder, (path,))
        self.document.included = [other for other in self.folders if other is not self.document]
        for other in self.folders:
            self._define(other)
        data = {name: value for name, value in self.document.data.items() if name not in SHARED}
        tasks = data.get("tasks")
        if isinstance(tasks, list):
            data["tasks"] = [self._task(index, task) for index, task in enumerate(tasks)]
        own = data.get("variables", {})
        if isinstance(own, dict) and (variables := self._used(own, data)):
            data["variables"] = variables
        self.document.data = accepted(data)

    def _read(self, document: Document, folder: Path, chain: tuple[Path, ...]) -> None:
        """Read what a document includes, and what that does."""
        named = document.data.get("include")
        for index, name in enumerate(named if isinstance(named, list) else [named]):
            place: Place = ("include", index) if isinstance(named, list) else ("include",)
            if not isinstance(name, str):
                continue  # the schema says so
            path = Path(os.path.normpath(folder / name))
            if path in self.paths and path not in chain:
                continue
            self.paths.add(path)
            if path in chain:
                shown = " > ".join(
                    os.path.relpath(step, folder) for step in (*chain[chain.index(path) :], path)
                )
                self._problem(Source(document, place), f"circular include: {shown}")
            else:
                self._include(document, place, path, name, chain)

    def _include(
        self, document: Document, place: Place, path: Path, name: str, chain: tuple[Path, ...]
    ) -> None:
        try:
            if path.exists() and (not path.is_file() or path.stat().st_size > LARGEST):
                self._problem(Source(document, place), f"{name} is not a file of at most {LARGEST >> 20} MiB")
                return
            other = Document.read(path, os.path.join(os.path.dirname(document.name), name))
        except NotFoundError as error:
            self._problem(Source(document, place), f"cannot include {error}")
            return
        if not isinstance(other.data, dict):
            self._problem(Source(other, ()), "expected an object")
        elif "tasks" in other.data:
            hint = "move shared parts into its services and steps"
            self._problem(Source(other, ("tasks",)), "an included file cannot have tasks", hint, key=True)
        elif len(self.folders) > MOST_FILES:
            self._problem(Source(document, place), f"more than {MOST_FILES} files are included")
        else:
            self.folders[other] = path.parent
            self._read(other, path.parent, (*chain, path))

    def _define(self, document: Document) -> None:
        """Note what a document defines."""
        for kind, places in (*self.defined.items(), ("variables", self.variables)):
            section = document.data.get(kind)
            for name in section if isinstance(section, dict) else ():
                if name.startswith("_") or (kind == "variables" and document is self.document):
                    continue
                source = Source(document, (kind, name))
                if name in places:
                    other = places[name]
                    where = f"{other.document.name}:{other.document.line(other.place)}"
                    self._problem(
                        source, f"{name} is also defined in {where}", "rename one of them", key=True
                    )
                places.setdefault(name, source)

    def _task(self, index: int, task: Any) -> Any:
        if not isinstance(task, dict):
            return task
        place: Place = ("tasks", index)
        members, sources = self._extended(task, Source(self.document, place), "steps", ())
        if isinstance(members.get("service"), dict):
            source = sources["service"]
            service, parts = self._extended(members["service"], source, "services", ())
            members["service"] = service
            self._note((*place, "service"), parts)
        if "files" in members and sources["files"].document is not self.document:
            members["files"] = self._moved(members["files"], sources["files"].document)
        self._note(place, sources)
        return members

    def _extended(self, value: dict[str, Any], source: Source, kind: str, chain: tuple[str, ...]) -> Members:
        """The members of an object, with those of what it extends."""
        members: dict[str, Any] = {}
        sources: dict[str, Source] = {}
        name = value.get("extends")
        defined = self.defined[kind]
        if isinstance(name, str):
            at = Source(source.document, (*source.place, "extends"))
            if name in chain:
                self._problem(at, f"circular extends: {' > '.join((*chain, name))}")
            elif name not in defined:
                hint = closest(name, defined) or f"defined: {', '.join(defined) or 'none'}"
                self._problem(at, f"no {DEFINED[kind]} {name!r} to extend", hint)
            elif isinstance(base := defined[name].document.data[kind][name], dict):
                members, sources = self._extended(base, defined[name], kind, (*chain, name))
        for member, item in value.items():
            if member != "extends" or not isinstance(item, str):
                members[member] = item
                sources[member] = Source(source.document, (*source.place, member))
        return members, sources

    def _used(self, own: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The file's variables, and behind them those of the included ones that it uses."""
        used: dict[str, Any] = {}
        left = dict(self.variables)
        unread = _words(own) | self._words_of_tasks(data.get("tasks"))
        while names := unread & left.keys():
            unread = set()
            for name in names:
                shared = left.pop(name)
                used[name] = self._variable(name, shared, own)
                unread |= _words(shared.document.data["variables"][name])
        return {name: used.get(name, value) for name, value in own.items()} | {
            name: used[name] for name in self.variables if name in used and name not in own
        }

    def _words_of_tasks(self, tasks: Any) -> set[str]:
        words: set[str] = set()
        size = 0
        for index, task in enumerate(tasks if isinstance(tasks, list) else ()):
            text = json.dumps(task)
            size += len(text)
            if size > MOST_TEXT:
                at = Source(self.document, ("tasks", index))
                self._problem(at, f"with what it extends, the file is larger than {MOST_TEXT >> 20} MiB")
                break
            words |= _words(text)
        return words

    def _variable(self, name: str, shared: Source, own: dict[str, Any]) -> Any:
        """An included variable, with the members that the file itself gives it."""
        value, place = shared.document.data["variables"][name], ("variables", name)
        self.document.origins[place] = shared
        if name not in own:
            return value
        mine = _long(own[name])
        for member in mine:
            at: Place = (*place, member)
            self.document.origins[at] = Source(self.document, at if mine is own[name] else place)
        return {**_long(value), **mine}

    def _moved(self, files: Any, document: Document) -> Any:
        """Files of another file, relative to the folder of this one."""
        away = os.path.relpath(self.folders[document], self.folder)

        def moved(file: Any) -> Any:
            name = file.get("from") if isinstance(file, dict) else None
            if not isinstance(name, str) or name.startswith(("~", "<<", "{{")):
                return file
            return {**file, "from": os.path.join(away, name)}

        return [moved(file) for file in files] if isinstance(files, list) else files

    def _note(self, place: Place, sources: dict[str, Source]) -> None:
        for name, source in sources.items():
            at: Place = (*place, name)
            if source != (self.document, at):
                self.document.origins[at] = source

    def _problem(self, source: Source, message: str, hint: str = "", *, key: bool = False) -> None:
        self.problems.append(source.document.problem(source.place, message, hint, key=key))


def _long(variable: Any) -> dict[str, Any]:
    """A variable as an object, where it may be its default alone."""
    return variable if isinstance(variable, dict) else {"default": variable}


def _words(value: Any) -> set[str]:
    """The names in a JSON value, or in its text."""
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", value if isinstance(value, str) else json.dumps(value)))

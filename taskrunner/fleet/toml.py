"""A TOML file as a document whose problems can be said with their line."""

from __future__ import annotations

import re
import sys
from functools import cached_property
from typing import Any

from taskrunner.errors import Problem, TaskFileError
from taskrunner.model.document import Document, Place

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEADER = re.compile(r"^[ \t]*\[+[ \t]*([^\]\n]+?)[ \t]*\]+", re.MULTILINE)
KEY = re.compile(r"^[ \t]*([A-Za-z0-9_.\"'-]+)[ \t]*=[ \t]*", re.MULTILINE)
WHERE = re.compile(r"\(at line (\d+), column (\d+)\)")


class TomlDocument(Document):
    """The text of a TOML file and the value in it. Raises TaskFileError when it is not TOML."""

    def _parse(self) -> Any:
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            where = WHERE.search(str(error))
            line, column = (int(where[1]), int(where[2])) if where else (len(self.text.splitlines()), 1)
            message = "not valid TOML: " + re.sub(r" \(at .*\)", "", str(error))
            raise TaskFileError([Problem(self.name, line, column, "", message)]) from error

    @cached_property
    def _scan(self) -> tuple[dict[Place, tuple[int, int]], list[tuple[int, int]]]:
        """Offsets of each table and key that has a line of its own; inline values are at their key."""
        places: dict[Place, tuple[int, int]] = {(): (0, 0)}
        table: Place = ()
        matches = sorted(
            [*HEADER.finditer(self.text), *KEY.finditer(self.text)], key=lambda match: match.start()
        )
        for match in matches:
            parts = tuple(part.strip(" \t\"'") for part in match[1].split("."))
            if match.re is HEADER:
                table = parts
                for depth in range(1, len(parts) + 1):
                    places.setdefault(parts[:depth], (match.start(1), match.start(1)))
            else:
                places.setdefault((*table, *parts), (match.start(1), match.end()))
        return places, []

"""A plan as it is used: found, read and checked, with what it includes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner import packs
from taskrunner.errors import NotFoundError, TaskFileError, closest, in_order
from taskrunner.experiments.models import PlanFile
from taskrunner.experiments.patterns import END_TO_END, Measurement, expanded
from taskrunner.model import schema
from taskrunner.model.document import Document

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NATIVE_LEN = 32_768
"""What a model is made for, where the plan does not say `native_len`."""
NUMBERS = ("native_len", "kv_pool_tokens", "start_minutes", "tp_size", "node_count")
"""Of the infrastructure."""


class Plan(NamedTuple):
    """A plan, with its patterns in the file's order."""

    name: str
    title: str
    file: PlanFile
    document: Document
    patterns: Sequence[Measurement]
    values: Mapping[str, str]

    def infrastructure(self, name: str, default: Any = None) -> Any:
        return (self.file.infrastructure or {}).get(name, default)

    def number(self, name: str, default: float) -> float:
        """A number of the infrastructure."""
        return float(self.infrastructure(name) or default)

    @property
    def token_bytes(self) -> int:
        """Bytes of the KV cache of a token, for the tools that transfer one; 0 where the plan states none."""
        stated = (self.file.kv_cache_reference or {}).get("bytes_per_token", 0)
        return int(stated) if isinstance(stated, (int, float)) else 0

    def end_to_end(self) -> list[Measurement]:
        return [pattern for pattern in self.patterns if pattern.kind == END_TO_END]


def folder() -> Path:
    """The folder of the plans that come with taskrunner."""
    return packs.folder() / "plans"


def shipped() -> Iterator[Path]:
    """The plans that come with taskrunner."""
    yield from sorted(folder().glob("*.json"))


def find(name: str) -> Path:
    """The file that is meant: a path, a name under ./plans or ./tasks/plans, or one that comes with it.

    Raises NotFoundError with the closest names.
    """
    for place in ("", "plans", "tasks/plans", "experiments"):
        for suffix in ("", ".json"):
            path = Path(place, name + suffix)
            if path.is_file():
                return path
    own = {path.stem: path for path in shipped()}
    stem = Path(name).name.removesuffix(".json")
    if stem in own:
        return own[stem]
    raise NotFoundError(f"no plan {name!r}", closest(stem, own) or "`taskrunner plan list` shows them")


def load(
    name: str | Path,
    infrastructure: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
) -> Plan:
    """Read a plan; `infrastructure` says otherwise than the file, `values` are those of serving variables.

    Raises NotFoundError, and TaskFileError with every problem.
    """
    path = Path(name) if isinstance(name, Path) else find(name)
    document = Document.read(path)
    problems = schema.problems(document, "plan")
    if problems:
        raise TaskFileError(problems)
    if not SAFE.fullmatch(path.stem):
        what = f"{path.stem!r} cannot be the name of a plan, which is that of its results"
        raise TaskFileError([document.problem((), what, "name the file with letters, digits, dot, _ and -")])
    file = PlanFile.model_validate(document.data)
    file.infrastructure = {**(file.infrastructure or {}), **(infrastructure or {})}
    for number in NUMBERS:
        if (value := file.infrastructure.get(number)) and not re.fullmatch(r"\d+(\.\d+)?", str(value)):
            place = ("infrastructure", number) if number not in (infrastructure or {}) else ()
            problems.append(document.problem(place, f"{number} is {value!r}, which is no number"))
    if problems:
        raise TaskFileError(problems)
    included = _included(document, file, path.parent)
    patterns: list[Measurement] = []
    for source, part in [(document, file), *included]:
        patterns += expanded(source, part, file, problems)
    seen: dict[str, Measurement] = {}
    for pattern in patterns:
        other = seen.setdefault(pattern.id, pattern)
        if not SAFE.fullmatch(pattern.id):
            message = f"{pattern.id!r} cannot be the name of a folder"
            problems.append(pattern.document.problem(pattern.place, message, "letters, digits, dot, _ and -"))
        if other is not pattern:
            message = f"pattern {pattern.id!r} is there twice: its results would overwrite each other"
            problems.append(pattern.document.problem(pattern.place, message))
    if not patterns:
        problems.append(document.problem((), "the plan has no patterns"))
    if problems:
        raise TaskFileError(in_order(problems))
    parts = [file, *(part for _, part in included)]
    layers = [layer for part in parts for layer in part.layers or []]
    comparisons = [comparison for part in parts for comparison in part.comparisons or []]
    whole = file.model_copy(update={"layers": layers, "comparisons": comparisons})
    return Plan(path.stem, file.name or path.stem, whole, document, patterns, values or {})


def _included(document: Document, file: PlanFile, near: Path) -> list[tuple[Document, PlanFile]]:
    parts = []
    for name in [file.include] if isinstance(file.include, str) else file.include or []:
        try:
            other = Document.read(near / name, name)
        except NotFoundError as error:
            raise TaskFileError([document.problem(("include",), f"cannot include {error}")]) from error
        problems = schema.problems(other, "plan")
        if problems:
            raise TaskFileError(problems)
        parts.append((other, PlanFile.model_validate(other.data)))
    return parts

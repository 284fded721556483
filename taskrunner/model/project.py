"""Which project a task file belongs to: what tells its services, and what a node knows of it, from
another one's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ORIGIN = re.compile(r'\[remote "origin"\][^\[]*?^\s*url\s*=\s*(\S+)', re.MULTILINE | re.DOTALL)


class Project(NamedTuple):
    """A project: its name, the same in each of its checkouts where that can be known, and its folder here."""

    name: str
    folder: Path


def project_of(path: Path) -> Project:
    """The project of a file: its git repository, known by where it comes from; else the file's own folder."""
    path = path.resolve()
    for folder in path.parents:
        if (folder / ".git").exists():
            return Project(_origin(folder / ".git") or str(folder), folder)
    return Project(str(path.parent), path.parent)


def _origin(git: Path) -> str:
    """The URL of the remote "origin"; "" where there is none."""
    try:
        if git.is_file():  # of a worktree or a submodule
            git = git.parent / git.read_text().partition("gitdir:")[2].strip()
            common = git / "commondir"
            git = git / common.read_text().strip() if common.exists() else git
        found = ORIGIN.search((git / "config").read_text(errors="replace"))
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found else ""

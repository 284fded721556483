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
        match = ORIGIN.search((git / "config").read_text(errors="replace"))
    except (OSError, UnicodeDecodeError):
        return ""
    return _same_for_all(match[1]) if match else ""


def _same_for_all(url: str) -> str:
    """A repository's URL as host and path, however it is reached: git@host:path, https://user@host/path.git."""
    scheme, separator, rest = url.rpartition("://")
    if not separator:
        rest = url.replace(":", "/", 1) if re.match(r"[\w.@-]+:", url) else url
    if scheme == "file" or "/" not in rest:
        return rest
    host, _, path = rest.partition("/")
    host = host.rpartition("@")[2].partition(":")[0].lower()
    return host + "/" + path.strip("/").removesuffix(".git")

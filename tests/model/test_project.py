"""Which project a task file belongs to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from taskrunner import compile
from taskrunner.model.project import project_of


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_a_file_outside_of_a_repository_belongs_to_its_folder(tmp_path: Path) -> None:
    assert project_of(tmp_path / "t.json") == (str(tmp_path.resolve()), tmp_path.resolve())


def test_a_repository_is_known_by_where_it_comes_from(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "tasks").mkdir(parents=True)
        git(folder, "init")
        assert project_of(folder / "tasks" / "t.json") == (str(folder.resolve()), folder.resolve())
        git(folder, "remote", "add", "upstream", "https://host/upstream.git")
        git(folder, "remote", "add", "origin", "https://host/team/testbed.git")
    found = {project_of(tmp_path / name / "tasks" / "t.json").name for name in ("one", "two")}
    assert found == {"host/team/testbed"}


@pytest.mark.parametrize(
    "url",
    [
        "git@host:team/testbed.git",
        "https://host/team/testbed",
        "https://user:token@HOST/team/testbed.git/",
        "ssh://git@host:2222/team/testbed.git",
        "host:team/testbed",
    ],
)
def test_a_repository_is_the_same_however_it_is_reached(tmp_path: Path, url: str) -> None:
    git(tmp_path, "init")
    git(tmp_path, "remote", "add", "origin", url)
    assert project_of(tmp_path / "t.json").name == "host/team/testbed"
    git(tmp_path, "remote", "set-url", "origin", "/srv/git/testbed.git")
    assert project_of(tmp_path / "t.json").name == "/srv/git/testbed"


def test_a_worktree_belongs_to_the_repository(tmp_path: Path) -> None:
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init")
    git(main, "remote", "add", "origin", "git@host:testbed.git")
    git(main, "commit", "--allow-empty", "-m", "x")
    git(main, "worktree", "add", str(tmp_path / "other"))
    assert project_of(tmp_path / "other" / "t.json") == (
        "host/testbed",
        (tmp_path / "other").resolve(),
    )
    (tmp_path / "other" / ".git").write_bytes(b"\xff gitdir: nowhere")
    assert project_of(tmp_path / "other" / "t.json").name == str((tmp_path / "other").resolve())


def test_the_packs_are_one_project() -> None:
    keys = {compile(name)["project"] for name in ("serve-producer", "stop-serving", "quickstart")}
    assert len(keys) == 1
    assert compile("quickstart", on="ssh://nowhere")["key"] != compile("quickstart")["key"]

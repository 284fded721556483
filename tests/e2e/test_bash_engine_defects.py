"""What went wrong in the bash engine that this one replaces: each of its defects is a test here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import Run, TaskFileError, run, start
from taskrunner.errors import NotFoundError
from tests.helpers import Process

Write = Callable[..., Path]


def test_a_command_that_reads_stdin_does_not_eat_the_plan(write: Write) -> None:
    path = write({"id": "a", "commands": ["cat >/dev/null", "echo SECOND > second"]})
    assert run(path).status == "ok"
    assert Path("second").exists()


def test_exit_0_ends_the_step_not_the_run(write: Write) -> None:
    path = write({"id": "a", "commands": ["exit 0", "touch never"]}, {"id": "b", "commands": ["touch b"]})
    assert run(path).ok == 2
    assert Path("b").exists()
    assert not Path("never").exists()


def test_ampersands_in_values(write: Write) -> None:
    path = write({"id": "a", "commands": ["echo '<<URL>>' > out"]}, variables={"URL": "http://h/?a=1&b=2"})
    run(path)
    assert Path("out").read_text() == "http://h/?a=1&b=2\n"


def test_a_command_of_several_lines(write: Write) -> None:
    run(write({"id": "a", "commands": ["for i in 1 2; do\necho $i >> out\ndone"]}))
    assert Path("out").read_text() == "1\n2\n"


@pytest.mark.parametrize("mark", ["{{NOPE}}", "<<NOPE>>"])
def test_an_undefined_variable_is_found_before_anything_runs(write: Write, mark: str) -> None:
    path = write({"id": "a", "commands": ["touch ran"]}, {"id": "b", "commands": [f"echo {mark}"]})
    with pytest.raises(TaskFileError, match=r"tasks.json:\d+:\d+: .*NOPE is not defined"):
        run(path)
    assert not Path("ran").exists()


def test_cd_does_not_leak_into_the_next_step(write: Write) -> None:
    run(
        write(
            {"id": "a", "commands": ["cd /usr; export X=1"]},
            {"id": "b", "commands": ['echo "$PWD ${X:-}" > out']},
        )
    )
    assert Path("out").read_text() == f"{Path.cwd()} \n"


def test_from_an_unknown_step_is_an_error(write: Write, cli: Callable[..., Process]) -> None:
    path = write({"id": "05-install", "commands": ["touch ran"]})
    with pytest.raises(NotFoundError) as caught:
        run(path, start="05-instal")
    assert caught.value.hint == "did you mean 05-install?"
    assert cli(path, "--from", "typo").returncode == 2
    assert not Path("ran").exists()


def test_files_do_not_share_entries_even_with_equal_steps(write: Write) -> None:
    step = {"id": "a", "commands": ["echo ran >> out"]}
    run(write(step, file="work/one.json"))
    run(write(step, file="work/two.json"))
    assert Path("out").read_text() == "ran\nran\n"


def test_an_edited_step_and_a_changed_variable_run_again(write: Write) -> None:
    def step(text: str) -> dict[str, object]:
        return {"id": "a", "commands": [f"echo {text} $V >> out"]}

    for text, value in (("1", "x"), ("1", "x"), ("2", "x"), ("2", "y"), ("2", "y")):
        run(write(step(text), variables={"V": "x", "OTHER": text + value}), env={"V": value})
    assert Path("out").read_text() == "1 x\n2 x\n2 y\n"


def test_the_guard_decides_not_the_record(write: Write) -> None:
    path = write({"id": "a", "skip_if": "[ -e made ]", "commands": ["touch made; echo ran >> out"]})
    run(path)
    assert run(path).skipped == 1
    Path("made").unlink()
    run(path)
    assert Path("out").read_text() == "ran\nran\n"


def test_a_step_may_take_longer_than_any_fixed_wait(write: Write) -> None:
    begun = start(write({"id": "a", "commands": ["sleep 1.2; echo done"]}))
    with begun:
        assert isinstance(begun, Run)
        assert begun.result().status == "ok"


def test_a_file_of_the_bash_engine_runs_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "seed.json"
    path.write_text(
        """{
  "name": "Setup", "description": "as it was",
  "variables": {"PORT": "8100", "WHO": "{{PORT}}-x"},
  "tasks": [
    {"id": "01-a", "name": "A", "description": "d", "skip_if": "test -f a-{{PORT}}",
     "commands": ["cat <<EOF > a-{{PORT}}", "port={{PORT}}", "EOF", "docker() { echo \\"$@\\"; }", "docker ps --format '{{.Names}}' >> a-{{PORT}}"]},
    {"id": "02-b", "commands": ["echo {{WHO}} > b"]}
  ]
}"""
    )
    assert run(path).ok == 2
    assert Path("a-8100").read_text() == "port=8100\nps --format {{.Names}}\n"
    assert Path("b").read_text() == "8100-x\n"
    assert run(path).skipped == 2

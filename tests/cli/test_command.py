"""The command as its users type it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest

from taskrunner import __version__
from taskrunner.cli import registry
from taskrunner.cli.registry import COMMANDS
from tests.helpers import Process, command, completed, wait_for

Write = Callable[..., Path]
Cli = Callable[..., Process]
SECRET = {"TOKEN": {"secret": True, "default": "hunter2hunter2"}}


def plain(text: str) -> list[str]:
    """Lines without their time stamps, times as T."""
    import re

    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]
    return [re.sub(r"\b\d+(\.\d+)?s\b", "T", line) for line in lines]


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").stdout == f"taskrunner {__version__}\n"
    text = cli("--help").stdout
    assert all(f" {name}" in text for name in COMMANDS)
    assert "examples:" in text
    for name in COMMANDS:
        assert cli(name, "--help").returncode == 0
    assert "examples:" in cli("run", "--help").stdout
    assert cli().returncode == 2
    assert cli("--no-such-option").returncode == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("validat t.json", "taskrunner: unknown command 'validat'; did you mean validate?"),
        ("run x --verbos", "taskrunner run: unknown option '--verbos'; did you mean --verbose or --from?"),
        ("mlflow", "taskrunner mlflow: expected a command: log, sync, url, test"),
        ("mlflow lok r.json", "taskrunner mlflow: unknown command 'lok'; did you mean log?"),
        (
            "mlflow url --experiment x",
            "taskrunner mlflow url: unknown option '--experiment'; --help lists them",
        ),
        ("mlflow log", "taskrunner mlflow log: the following arguments are required: FILE"),
        (
            "bench import f --concurrency 4",
            "taskrunner bench import: unknown option '--concurrency'; --help lists them",
        ),
        ("aws preflght", "taskrunner aws: unknown command 'preflght'; did you mean preflight?"),
        (
            "status x",
            "taskrunner status: unexpected argument 'x'; `taskrunner status --help` shows the usage",
        ),
        ("a.json b.json", "taskrunner: unexpected argument 'b.json'; `taskrunner --help` shows the usage"),
    ],
)
def test_a_mistake_gets_one_line_with_what_is_nearest(cli: Cli, words: str, line: str) -> None:
    done = cli(*words.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")


def test_a_mistyped_command_without_more_is_no_pack(cli: Cli) -> None:
    done = cli("valdate")
    assert done.returncode == 2
    assert "did you mean validate?" in done.stderr


def test_runner_says_what_is_nearest(runner: Cli) -> None:
    done = runner("nods")
    assert (done.returncode, done.stderr) == (2, "runner: unknown command 'nods'; did you mean nodes?\n")
    assert "unknown option '--verbos'" in runner("--verbos").stderr


def test_plain_lines(write: Write, cli: Cli) -> None:
    write(
        {"id": "01-git", "name": "Check git", "skip_if": "true", "commands": ["false"]},
        {"id": "02-work", "commands": ["echo out; sleep 0.3"]},
        {
            "id": "03-bad",
            "name": "Break",
            "skip_if": "false",
            "commands": ["echo first", "echo why >&2\nexit 7"],
        },
        {"id": "04-never", "commands": ["true"]},
        {"id": "05-clean", "always": True, "commands": ["true"]},
    )
    done = cli("tasks.json", "--env-file", "/dev/null")
    assert done.returncode == 1
    assert plain(done.stdout) == [
        "[SKIP] 01-git Check git (skip_if holds)",
        "[RUN] 02-work",
        "[OK] 02-work (T)",
        "[RUN] 03-bad Break",
        "[FAIL] 03-bad Break (T): exit status 7",
        "    tasks.json:24: echo why >&2",
        "      exit 7",
        "    | first",
        "    | why",
        "    to resume: taskrunner tasks.json --env-file /dev/null --from 03-bad",
        "[RUN] 05-clean",
        "[OK] 05-clean (T)",
        "[DONE] 2 ok, 1 skipped, 1 failed in T",
    ]


def test_resuming_with_the_printed_command(write: Write, cli: Cli) -> None:
    write(
        {"id": "a", "commands": ["echo a >> out"]},
        {"id": "b c", "commands": ["echo $V >> out; [ -e ok ]"]},
        variables={"V": ""},
    )
    failed = cli("tasks.json", "--env", "V=x y")
    (line,) = [line for line in failed.stdout.splitlines() if "to resume" in line]
    Path("ok").touch()
    resume = line.split(": ", 1)[1].replace("taskrunner", " ".join(command()), 1)
    assert subprocess.run(resume, shell=True, capture_output=True, check=False).returncode == 0
    assert Path("out").read_text() == "a\nx y\nx y\n"


def test_from_without_a_file_goes_on_with_the_last_one(write: Write, cli: Cli, tmp_path: Path) -> None:
    path = write({"id": "a", "commands": ["echo a >> out"]}, {"id": "b", "commands": ["echo b >> out"]})
    assert "no task file has been run in this folder" in cli("--from", "b").stderr
    assert cli(path).returncode == 0
    again = cli("--from", "b")
    assert f"resuming {path}" in again.stderr
    assert Path("out").read_text() == "a\nb\nb\n"
    assert cli("--from", "b", cwd=tmp_path).returncode == 2


def test_a_run_goes_on_where_its_file_cannot_be_remembered(write: Write, cli: Cli, home: Path) -> None:
    """It may have filled the disk already."""
    path = write({"id": "a", "commands": ["echo a"]}, {"id": "b", "commands": ["echo b"]})
    home.mkdir()
    (home / "last").touch()
    assert cli(path).returncode == 0
    assert "no task file has been run in this folder" in cli("--from", "b").stderr


def test_no_secret_in_a_dry_run_a_plan_or_the_resume_line(write: Write, cli: Cli) -> None:
    write({"id": "a", "commands": ["echo <<TOKEN>>; exit 1"]}, variables=SECRET)
    for args in (
        ["--dry-run"],
        ["--dry-run", "--json"],
        [],
        ["--json"],
        ["-v"],
        ["--env", "TOKEN=other-secret"],
    ):
        done = cli("tasks.json", *args)
        assert "hunter2" not in done.stdout + done.stderr
        assert "other-secret" not in done.stdout + done.stderr
    assert "--env TOKEN --from a" in cli("tasks.json", "--env", "TOKEN=other-secret").stdout
    assert "hunter2" not in cli("compile", "tasks.json").stdout


def test_dry_run_says_what_would_happen_and_changes_nothing(write: Write, cli: Cli, home: Path) -> None:
    write(
        {"id": "a", "commands": ["touch a"]},
        {"id": "b", "skip_if": "true", "commands": ["touch b"]},
        {"id": "c", "skip_if": "[ -e c ]", "commands": ["touch <<NAME>>"]},
        {"id": "d", "when": {"NAME": "x"}, "commands": ["true"]},
        variables={"NAME": "c"},
    )
    done = cli("tasks.json", "--dry-run")
    assert done.returncode == 0
    verdicts = [line.strip() for line in done.stdout.splitlines() if "would" in line]
    assert verdicts == [
        "would run",
        "would skip: skip_if holds",
        "would run",
        "would skip: does not apply, NAME is 'c', not x",
    ]
    assert "$ touch c" in done.stdout
    assert not list(Path().glob("[abc]"))
    assert not list(home.glob("journal/*"))
    assert cli("history").stdout == ""
    assert cli("tasks.json").returncode == 0
    assert "would skip: already done" in cli("tasks.json", "--dry-run").stdout


def test_json_is_one_event_a_line(write: Write, cli: Cli) -> None:
    write({"id": "a", "commands": ["echo hello"]})
    events = [json.loads(line) for line in cli("tasks.json", "--json", "-v").stdout.splitlines()]
    assert [event["type"] for event in events] == [
        "run.started",
        "step.started",
        "output",
        "step.finished",
        "run.finished",
    ]
    assert events[2]["text"] == "hello\n"
    error = json.loads(cli("tasks.json", "--json", "--from", "x").stdout)
    assert (error["type"], error["exit"]) == ("error", 2)


def test_verbose_streams_all_output_as_it_comes(write: Write) -> None:
    path = write({"id": "a", "commands": ["echo one; sleep 3; echo two; printf three"]})
    with subprocess.Popen(command(path, "-v"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        began = time.monotonic()
        while "one" not in process.stdout.readline():
            pass
        assert time.monotonic() - began < 2.5
        rest = process.stdout.read()
    assert "two\nthree\n" in rest


def test_quiet(write: Write, cli: Cli) -> None:
    write({"id": "a", "commands": ["true"]}, {"id": "b", "commands": ["[ -e ok ]"]})
    assert "[FAIL] b" in cli("tasks.json", "-q").stdout
    Path("ok").touch()
    done = cli("tasks.json", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nope.json"], "no such task file or pack: 'nope.json'"),
        (["quickstrat"], "did you mean quickstart?"),
        (["."], "is a folder"),
        (["tasks.json", "--from", "05-instal"], "did you mean 05-install?"),
        (["tasks.json", "--env", "PROT=1"], "did you mean PORT?"),
        (["tasks.json", "--env", "PORT"], "PORT is not set in the environment"),
        (["tasks.json", "--env", "A-B=1"], "expected NAME=VALUE"),
        (["tasks.json", "--env-file", "none"], "none: No such file"),
        (["tasks.json", "--env-file", "bad.env"], "bad.env:2:1: expected NAME=value"),
        (["attach", "2020"], "no such run: '2020'"),
        (["logs"], "no such run: 'last'"),
        (["cancel"], "nothing is running"),
        ([], "exit status"),
    ],
)
def test_mistakes_are_one_clear_message_and_status_2(
    write: Write, cli: Cli, args: list[str], says: str
) -> None:
    write({"id": "05-install", "commands": ["touch ran <<PORT>>"]}, variables={"PORT": 1})
    Path("bad.env").write_text("# fine\nnonsense\n")
    done = cli(*args)
    assert done.returncode == 2
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not Path("ran").exists()


def test_validate_lists_every_problem(write: Write, cli: Cli) -> None:
    write(
        {"id": "a", "comands": ["x"]},
        {"id": "a", "commands": ["echo 'open", "<<NO>>"]},
        variables={"A": {"requird": 1}},
    )
    done = cli("validate", "tasks.json")
    assert done.returncode == 2
    for says in ('unknown key "comands"', "first used on", "not valid bash", "NO is not defined", "requird"):
        assert says in done.stdout
    assert all(line.startswith("tasks.json:") for line in done.stdout.splitlines())
    listed = json.loads(cli("validate", "tasks.json", "--json").stdout)
    assert {"file", "line", "column", "path", "message", "hint", "rule"} == set(listed[0])
    ran = cli("tasks.json")
    assert ran.returncode == 2
    assert "5 problems; nothing was run" in ran.stderr


def test_validate_needs_no_values(write: Write, cli: Cli) -> None:
    path = write(
        {"id": "a", "commands": ["echo <<N>>"], "when": {"M": "x"}},
        variables={"N": {"required": True}, "M": {"required": True, "choices": ["x", "y"]}},
    )
    assert cli("validate", path).returncode == 0
    needed = cli(path)
    assert needed.returncode == 2
    assert "a value is needed for N" in needed.stderr
    assert "a value is needed for M" in needed.stderr


def test_sources_of_values(write: Write, cli: Cli) -> None:
    write(
        {"id": "a", "commands": ["echo $A $B $C $NODE1_PRIVATE $D > out"]},
        variables={
            "A": "file",
            "B": "file",
            "C": "file",
            "NODE1_PRIVATE": "{{NODE1_PRIVATE}}",
            "D": {"required": True},
        },
    )
    Path("vars.env").write_text('export B="env file"\nC=env file\n\n# no\n')
    env = {**os.environ, "NODE1_PRIVATE": "10.0.0.1", "A": "not this", "D": "from the environment"}
    done = cli("tasks.json", "--env-file", "vars.env", "-e", "C=given", "-e", "D", env=env)
    assert done.returncode == 0, done.stderr
    assert Path("out").read_text() == "file env file given 10.0.0.1 from the environment\n"


def test_looking_at_runs(write: Write, cli: Cli) -> None:
    path = write(
        {"id": "a", "commands": ["echo hello"]},
        {"id": "b", "commands": ["echo out; touch started; sleep 30"]},
    )
    assert cli("status").stdout == "nothing is running\n"
    run = cli(path, "-d").stdout.strip()
    wait_for(lambda: Path("started").exists())
    assert "at b (2/2)" in cli("status").stdout
    assert json.loads(cli("status", "--json").stdout)[0]["run"] == run
    assert cli("logs").stdout == "==> a <==\nhello\n==> b <==\nout\n"
    assert cli("logs", "a").stdout == "hello\n"
    assert cli("logs", "x").returncode == 2
    follow = subprocess.Popen(command("logs", "-f", "b"), stdout=subprocess.PIPE, text=True)
    assert "stopping run" in cli("cancel").stdout
    assert follow.communicate(timeout=10)[0].startswith("out\n")
    assert "cancelled" in cli("history").stdout
    assert "■  b" in cli("show", run[:15]).stdout
    assert cli("attach").returncode == 130
    assert "already ended" in cli("cancel", run).stdout


def test_list_packs_schema_completion(write: Write, cli: Cli) -> None:
    write({"id": "a", "name": "First", "commands": ["true"]}, {"id": "bb", "commands": ["<<NOT_GIVEN>>"]})
    assert cli("tasks.json", "--list").stdout == "Test  (tasks.json)\n  a   First\n  bb\n"
    assert [task["id"] for task in json.loads(cli("tasks.json", "--list", "--json").stdout)["tasks"]] == [
        "a",
        "bb",
    ]
    assert "setup-environment" in cli("packs").stdout
    assert json.loads(cli("schema").stdout)["title"] == "taskrunner task file"
    for shell in ("bash", "zsh"):
        script = cli("completion", shell).stdout
        assert "--dry-run" in script
        if shell == "bash":
            assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_reader_that_goes_away(write: Write) -> None:
    path = write({"id": "a", "commands": ["seq 100000"]})
    line = " ".join(command(path, "-v")) + " | head -1; exit ${PIPESTATUS[0]}"
    done = completed(["bash", "-c", line], timeout=30)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    wait_for(
        lambda: "ok" in subprocess.run(command("history"), capture_output=True, text=True, check=True).stdout
    )


def test_file_names_with_spaces_and_umlauts(write: Write, cli: Cli) -> None:
    path = write({"id": "ä ö", "commands": ["echo ü; false"]}, file="work/my täsks/a b.json")
    done = cli(path)
    assert "| ü" in done.stdout
    assert "--from 'ä ö'" in done.stdout
    assert cli("logs", "ä ö").stdout == "ü\n"


def test_a_dry_run_in_a_folder_that_is_still_to_be_made(write: Write, cli: Cli) -> None:
    path = write(
        {"id": "a", "commands": ["mkdir d"]},
        {"id": "b", "cwd": "d", "skip_if": "[ -e x ]", "commands": ["touch x"]},
    )
    assert cli(path, "--dry-run").stdout.count("would run") == 2
    assert cli(path).returncode == 0
    assert "would skip: skip_if holds" in cli(path, "--dry-run").stdout


def test_a_dry_run_compares_the_files_that_a_step_copies(
    write: Callable[..., Path], cli: Callable[..., Process]
) -> None:
    path = write({"id": "a", "files": [{"from": "src", "to": "there/"}]}, {"id": "b", "commands": ["true"]})
    folder = Path("src")
    folder.mkdir()
    (folder / "a b").write_text("1")
    assert cli(path, "--dry-run").stdout.count("would run") == 2
    assert not Path("there").exists()
    assert cli(path).returncode == 0
    assert "would skip: already there" in cli(path, "--dry-run").stdout
    (folder / "a b").write_text("2")
    assert cli(path, "--dry-run").stdout.count("would run") == 2


def _commands(table: Mapping[str, registry.Command]) -> Iterator[registry.Command]:
    for entry in table.values():
        yield entry
        yield from _commands(entry.commands)


def test_every_command_has_its_handler() -> None:
    for entry in [*_commands(registry.COMMANDS), *_commands(registry.RUNNER_COMMANDS)]:
        if entry.handler:
            module, name = entry.handler.split(":")
            assert callable(getattr(import_module(f"taskrunner.cli.commands.{module}"), name))

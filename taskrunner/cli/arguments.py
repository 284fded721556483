"""What can be said on the command line: one table of commands, each with its own parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

EXAMPLES = """examples:
  taskrunner quickstart                           half a minute, needs nothing
  taskrunner tasks/setup-environment.json         run a file; what is done already is skipped
  taskrunner setup-environment --dry-run          what would run, and what not, and why
  taskrunner FILE --env MODEL=Qwen/Qwen2.5-7B     give a variable a value
  taskrunner --from 05-install-python             go on with the file run last in this folder
  taskrunner status                               what is running
  taskrunner logs -f                              follow the output of the last run

exit status:
  0 done   1 a step failed   2 bad usage or an invalid file   3 target unreachable
  4 another run of the file is under way   130 cancelled
"""
RUN_EXAMPLES = """examples:
  taskrunner tasks/setup-environment.json --dry-run
  taskrunner FILE --env PORT=8100 --env HF_TOKEN    HF_TOKEN comes from the environment
  taskrunner FILE --only 03-serve --only 04-measure
  taskrunner FILE --detach && taskrunner attach
  taskrunner FILE --check                           would anything run a second time?
"""

Parser = argparse.ArgumentParser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `handler` names the function to call. Exits with 2 and a usage line."""
    if argv and argv[0] in COMMANDS:
        name, rest = argv[0], list(argv[1:])
    elif not argv or argv[0] in ("-h", "--help", "--version"):
        parser = overview()
        parser.parse_args(list(argv))
        parser.print_help()
        parser.exit(2)
    else:
        name, rest = "run", list(argv)
    command = COMMANDS[name]
    prog = "taskrunner" if name == "run" and argv[0] != "run" else f"taskrunner {name}"
    parser = Parser(prog=prog, description=command.help, epilog=command.epilog,
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    _fill(parser, command)
    return parser.parse_args(rest)


def overview() -> Parser:
    """The parser with every command, for --help and for shell completion."""
    from taskrunner import __version__

    parser = Parser(
        prog="taskrunner",
        usage="taskrunner [COMMAND] [FILE] [options]",
        description="Run JSON task files, step by step, idempotently. "
        "Without a command: run FILE (`taskrunner run --help` has its options).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"taskrunner {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        _fill(commands.add_parser(name, help=command.help, description=command.help), command)
    return parser


def _fill(parser: Parser, command: Command) -> None:
    for add in command.arguments:
        add(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(handler=command.handler)


def _file(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a task file, or the name of a pack")


def _optional_file(parser: Parser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE",
        help="a task file, or the name of a pack; with --from: the file run last here",
    )  # fmt: skip


def _files(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a task file, or a pack's name")


def _variables(parser: Parser) -> None:
    parser.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME=VALUE",
        help="a variable's value; NAME alone takes it from the environment",
    )  # fmt: skip
    parser.add_argument(
        "--env-file", action="append", default=[], metavar="PATH", help="a file of NAME=VALUE lines"
    )


def _selection(parser: Parser) -> None:
    parser.add_argument("--from", dest="start", metavar="STEP", help="start at this step")
    parser.add_argument("--until", metavar="STEP", help="stop after this step")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step")
    parser.add_argument("--reset", action="store_true", help="forget what was done before")


def _run(parser: Parser) -> None:
    parser.add_argument("--dry-run", "-n", action="store_true", help="say what would run, run nothing")
    parser.add_argument("--list", "-l", action="store_true", help="list the steps")
    parser.add_argument("--check", action="store_true",
                        help="after the run, evaluate the guards again: is it idempotent?")  # fmt: skip
    parser.add_argument("--detach", "-d", action="store_true", help="start it and return")


def _shown(parser: Parser) -> None:
    _json(parser)
    parser.add_argument("--quiet", "-q", action="store_true", help="show failures only")
    parser.add_argument("--verbose", "-v", action="store_true", help="show all output as it comes")


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON, for machines")


def _some_run(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", default="last", metavar="RUN",
                        help="a run's id, or its beginning (default: the last run)")  # fmt: skip


def _logs(parser: Parser) -> None:
    parser.add_argument("step", nargs="?", metavar="STEP", help="only this step")
    parser.add_argument("--run", default="last", metavar="RUN", help="default: the last run")
    parser.add_argument("--follow", "-f", action="store_true", help="go on as long as the run does")


def _count(parser: Parser) -> None:
    parser.add_argument("-n", type=int, default=20, metavar="N", dest="count", help="how many (20)")


def _shell(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell to complete in")


class Command(NamedTuple):
    """A command: what it is for, where it is handled, and its arguments."""

    help: str
    handler: str
    arguments: tuple[Callable[[Parser], None], ...]
    epilog: str = ""


COMMANDS = {
    "run": Command("run a task file", "run:run",
                   (_optional_file, _variables, _selection, _run, _shown), RUN_EXAMPLES),
    "validate": Command("check task files, run nothing", "check:validate", (_files, _json),
                        "example: taskrunner validate tasks/*.json\n"),
    "lint": Command("look for what is valid, but unwise", "check:lint", (_files, _json),
                    "example: taskrunner lint tasks/setup-environment.json\n"),
    "packs": Command("list the task files that come with taskrunner", "check:packs", (_json,)),
    "status": Command("what is running now", "inspect:status", (_json,)),
    "logs": Command("show the output of a run's steps", "inspect:logs", (_logs,),
                    "example: taskrunner logs -f 05-install-vllm\n"),
    "attach": Command("show a run from its beginning, and follow it", "run:attach",
                      (_some_run, _shown)),
    "cancel": Command("ask a run to stop", "inspect:cancel", (_some_run,)),
    "history": Command("list past runs", "inspect:history", (_count, _json)),
    "show": Command("how each step of a run went", "inspect:show", (_some_run, _json)),
    "schema": Command("print the JSON Schema of a task file", "check:schema", ()),
    "compile": Command("print the plan of a task file, secrets masked", "check:compile_",
                       (_file, _variables, _selection)),
    "completion": Command("print a script for shell completion", "check:completion", (_shell,),
                          'example: eval "$(taskrunner completion bash)"\n'),
}  # fmt: skip

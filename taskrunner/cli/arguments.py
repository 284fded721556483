"""From the words of a command line to a command and its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from taskrunner.cli import options
from taskrunner.cli.commands import PROGRAMS, Command
from taskrunner.cli.options import Parser

BEFORE = ("--stack", "--region", "--profile", "--nodes")
"""What may stand before the command of `runner`: which nodes there are."""
HELP = ("-h", "--help", "--version")


def parse(argv: Sequence[str], program: str = "taskrunner") -> argparse.Namespace:
    """The arguments; `handler` names the function to call. Exits with 2 and a usage line."""
    known = PROGRAMS[program]
    if program == "runner":
        argv = _command_first(argv)
    if argv and argv[0] in known.commands:
        name, rest = argv[0], list(argv[1:])
    elif program == "runner" and argv and argv[0].startswith("run-"):
        # `runner run-node1 FILE`
        name, rest = "run", [argv[0].removeprefix("run-"), *argv[1:]]
    elif not argv or argv[0] in HELP or (program == "runner" and argv[0].startswith("-")):
        parser = overview(program)
        parser.parse_args(list(argv))
        parser.print_help()
        parser.exit(2)
    elif program == "runner":
        from taskrunner.errors import closest

        parser = overview(program)
        parser.error(f"there is no command {argv[0]!r}; {closest(argv[0], known.commands) or 'see --help'}")
    else:
        name, rest = "run", list(argv)
    command = known.commands[name]
    prog = program if name == "run" and argv[0] != "run" and program == "taskrunner" else f"{program} {name}"
    parser = Parser(prog=prog, description=command.help, epilog=command.epilog,
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    _fill(parser, command)
    known_so_far = argparse.Namespace(program=program)
    if "command" in command.arguments.split():
        return parser.parse_args(rest, known_so_far)  # what follows it is the command's own
    return parser.parse_intermixed_args(rest, known_so_far)


def _command_first(argv: Sequence[str]) -> list[str]:
    """`runner --stack NAME nodes` as `runner nodes --stack NAME`."""
    words = 0
    while words < len(argv) and argv[words].partition("=")[0] in BEFORE:
        words += 1 if "=" in argv[words] else 2
    return [*argv[words : words + 1], *argv[:words], *argv[words + 1 :]]


def overview(program: str = "taskrunner") -> Parser:
    """The parser with every command, for --help and for shell completion."""
    from taskrunner import __version__

    about = PROGRAMS[program]
    parser = Parser(
        prog=program, usage=about.usage, description=about.description, epilog=about.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in about.commands.items():
        _fill(commands.add_parser(name, help=command.help, description=command.help), command)
    return parser


def _fill(parser: Parser, command: Command) -> None:
    for group in command.arguments.split():
        getattr(options, group)(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(handler=command.handler)

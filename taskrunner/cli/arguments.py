"""From the words of a command line to a command and its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from taskrunner.cli import options
from taskrunner.cli.registry import PROGRAMS, Command

BEFORE = ("--stack", "--region", "--profile", "--nodes")
"""What may stand before the command of `runner`: which nodes there are."""
HELP = ("-h", "--help", "--version")
USAGE = 2


class Parser(argparse.ArgumentParser):
    """Reports an error in one line; the usage is a page long, and `--help` shows it."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parse(argv: Sequence[str], program: str = "taskrunner") -> argparse.Namespace:
    """The arguments; `handler` names the function to call. Exits with 2 and one line when they are wrong."""
    entry = PROGRAMS[program]
    if program == "runner":
        argv = _command_first(argv)
    if argv and argv[0] in entry.commands:
        name, rest = argv[0], list(argv[1:])
    elif program == "runner" and argv and argv[0].startswith("run-"):
        # `runner run-node1 FILE`
        name, rest = "run", [argv[0].removeprefix("run-"), *argv[1:]]
    elif not argv or argv[0] in HELP:
        parser = overview(program)
        parser.parse_args(list(argv))
        parser.print_help()
        parser.exit(USAGE)
    elif program == "runner":
        kind = "option" if argv[0].startswith("-") else "command"
        Parser(program).error(_unknown(kind, argv[0], entry.commands))
    else:
        name, rest = "run", list(argv)
    command = entry.commands[name]
    prog = program if name == "run" and argv[0] != "run" and program == "taskrunner" else f"{program} {name}"
    while rest and rest[0] in command.commands:
        prog, command, rest = f"{prog} {rest[0]}", command.commands[rest[0]], rest[1:]
    parser = Parser(
        prog=prog,
        description=command.help,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _fill(parser, command)
    args = argparse.Namespace(program=program)
    if "command" in command.arguments.split():
        return parser.parse_args(rest, args)  # what follows it is the command's own
    if not command.handler:
        if rest and rest[0] not in HELP:
            parser.error(_unknown("command", rest[0], command.commands))
        parser.parse_args(rest[:1])
        parser.error(f"expected a command: {', '.join(command.commands)}")
    args, unexpected = parser.parse_known_intermixed_args(rest, args)
    if unexpected:
        commands = entry.commands if prog == program else {}
        parser.error(_unexpected(parser, unexpected[0], rest[0], commands))
    return args


def _unexpected(parser: Parser, word: str, first: str, commands: Iterable[str]) -> str:
    """What is wrong with a word that the parser has no place for; `first` may be meant as a command."""
    from taskrunner.errors import closest

    if word.startswith("-") and word != "-":
        names = [option for action in parser._actions for option in action.option_strings]
        return _unknown("option", word.partition("=")[0], names)
    if first != word and closest(first, commands):
        return _unknown("command", first, commands)
    return f"unexpected argument {word!r}; `{parser.prog} --help` shows the usage"


def _unknown(kind: str, name: str, names: Iterable[str]) -> str:
    from taskrunner.errors import closest

    return f"unknown {kind} {name!r}; {closest(name, names) or '--help lists them'}"


def _command_first(argv: Sequence[str]) -> list[str]:
    """`runner --stack NAME nodes` as `runner nodes --stack NAME`."""
    words = 0
    while words < len(argv) and argv[words].partition("=")[0] in BEFORE:
        words += 1 if "=" in argv[words] else 2
    return [*argv[words : words + 1], *argv[:words], *argv[words + 1 :]]


def overview(program: str = "taskrunner") -> Parser:
    """The parser with every command, for --help and for shell completion."""
    from taskrunner._version import __version__

    entry = PROGRAMS[program]
    parser = Parser(
        prog=program,
        usage=entry.usage,
        description=entry.description,
        epilog=entry.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    _add(parser, entry.commands)
    return parser


def _add(parser: Parser, commands: Mapping[str, Command]) -> None:
    places = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in commands.items():
        _fill(places.add_parser(name, help=command.help, description=command.help), command)


def _fill(parser: Parser, command: Command) -> None:
    for group in command.arguments.split():
        getattr(options, group)(parser)
    if command.commands and not command.arguments:
        _add(parser, command.commands)
    options.diagnostics(parser)
    parser.set_defaults(handler=command.handler)

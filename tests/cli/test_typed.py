"""What handlers are typed with is what the parsers yield."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from taskrunner.cli import arguments, options, typed
from taskrunner.cli.registry import PROGRAMS, Command


def handled(commands: Mapping[str, Command]) -> Iterator[Command]:
    for command in commands.values():
        if command.handler:
            yield command
        yield from handled(command.commands)


CASES = [
    pytest.param(program, command, id=f"{program}-{command.handler}")
    for program, about in PROGRAMS.items()
    for command in handled(about.commands)
    if not command.handler.startswith("inference:")
]


WORDS: dict[Any, str] = {options.amount: "1 %"}
"""What an option of a type may be, where that is not 1."""


def matches(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, UnionType):
        return any(matches(value, one) for one in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(matches(item, get_args(hint)[0]) for item in value)
    return type(value) is hint


def words_of(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Two command lines: with what is required, and with everything."""
    required, everything = [], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        word = str(next(iter(action.choices))) if action.choices else WORDS.get(action.type, "1")
        words = [*action.option_strings[:1], *([word] if action.nargs != 0 else [])]
        everything += words
        required += words if action.required else []
    yield required
    yield everything


@pytest.mark.parametrize(("program", "command"), CASES)
def test_a_handler_is_given_what_its_types_say(program: str, command: Command) -> None:
    module, name = command.handler.split(":")
    handler = getattr(import_module(f"taskrunner.cli.commands.{module}"), name)
    hints = get_type_hints(get_type_hints(handler, {"typed": typed})["args"])
    parser = arguments.Parser()
    arguments._fill(parser, command)
    for words in words_of(parser):
        args, _ = parser.parse_known_args(words, argparse.Namespace(program=program))
        values = {name: getattr(args, name, "missing") for name in hints}
        assert {name: value for name, value in values.items() if not matches(value, hints[name])} == {}

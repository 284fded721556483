"""Types of options on the command line: every number is finite and in its range."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from typing import Any


def number(
    low: float, high: float = 1e9, *, whole: bool = False, above: bool = False, infinite: bool = False
) -> Callable[[str], float]:
    """A type for argparse: a number from `low` to `high`; `above`: more than `low`; `infinite`: or inf."""

    def read(text: str) -> float:
        try:
            value: float = int(text) if whole else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a {kind}number, got {text!r}") from None
        if infinite and value == math.inf:
            return value
        if not low <= value <= high or (above and value == low):
            least = f"more than {low:g}" if above else f"at least {low:g}"
            limit = least if value < high else f"at most {high:g}"
            raise argparse.ArgumentTypeError(f"expected {limit}{' or inf' if infinite else ''}, got {text}")
        return value

    kind = "whole " if whole else ""
    return read


def percent(text: str) -> float:
    """A share of more than 0, as `2%` or `0.02`. Raises what argparse turns into a usage error."""
    digits, sign, rest = text.partition("%")
    if rest:
        raise argparse.ArgumentTypeError(f"expected a share such as 2% or 0.02, got {text!r}")
    share = number(0, 1e3, above=True)(digits) / (100 if sign else 1)
    if share >= 1:
        raise argparse.ArgumentTypeError(f"expected less than 100%, got {text!r}")
    return share


Option = tuple[str, Callable[[str], Any], Any, str, str]
"""An option, its type, default, placeholder and help."""


def add(parser: argparse.ArgumentParser, table: Iterable[Option]) -> None:
    """Add options; their help shows the default."""
    for option, kind, default, metavar, text in table:
        shown = (
            ""
            if default in ("", None)
            else f" ({default if isinstance(default, str) else f'{default:.10g}'})"
        )
        parser.add_argument(option, type=kind, default=default, metavar=metavar, help=text + shown)


COUNT = number(1, whole=True)
SIZE = number(1, 1 << 40, whole=True)
COUNT_OR_NONE = number(0, whole=True)
SHARE = number(0, 1)
SECONDS = number(0, 1e7, above=True)
PORT = number(0, 65535, whole=True)

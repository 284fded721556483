from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner.cli.output import streams
from taskrunner.cli.output.console import HarmlessConsole
from tests.helpers import command

EVIL = [
    "\x1b]0;title\x07",
    "\x1b]52;c;ZXZpbA==\x1b\\",
    "\x1b[2J",
    "\x1b[1;31m",
    "\x9b2J",
    "\x9d0;t\x9c",
    "\x1bc",
    "\x1bP1$q\x1b\\",
    "\x07",
    "\x08",
    "\x7f",
    "\x85",
    "\r",
    "\u202e",
    "\u2066",
]


@pytest.mark.parametrize("evil", EVIL)
def test_messages_are_harmless(evil: str) -> None:
    told = io.StringIO()
    print(f"a{evil}b\tc", file=streams.Messages(told))
    assert told.getvalue() == "ab\tc\n"


@pytest.mark.parametrize("evil", EVIL)
def test_what_the_live_view_shows_is_harmless(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    HarmlessConsole().print(f"a{evil}b")
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert shown.replace("\n", "").isprintable()
    assert shown[0] + shown[-2] == "ab"


def test_passwords_in_urls_are_hidden() -> None:
    assert (
        streams.shown("at http://svc:pa55@host/x and https://a@b/")
        == "at http://svc:***@host/x and https://a@b/"
    )


def test_output_keeps_its_colours_on_a_terminal_and_nothing_else(write: Callable[..., Path]) -> None:
    path = write({"id": "a", "commands": [r"printf '\033[31mred\033[0m \033]0;title\007\033[2Jend\n'"]})
    ours, theirs = pty.openpty()
    done = subprocess.run(command(path, "-v"), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while True:
            seen += os.read(ours, 4096)
    os.close(ours)
    assert done.returncode == 0
    assert b"\x1b[31mred\x1b[0m end" in seen
    assert b"title" not in seen

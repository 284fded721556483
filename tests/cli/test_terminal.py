"""The live view, as a person at a terminal sees it (tmux is the terminal)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.helpers import command
from tests.terminal import Terminal

Write = Callable[..., Path]


def test_the_live_view(terminal: Terminal, write: Write) -> None:
    write(
        {"id": "01-quick", "name": "Quick", "skip_if": "true", "commands": ["false"]},
        {
            "id": "02-slow",
            "name": "Slow",
            "commands": [
                "for i in 1 2 3; do printf '\\033[31mline %s\\033[0m\\n' $i; done; printf 'a\\rb\\rbar 50%%'; until [ -e go ]; do sleep 0.05; done"
            ],
        },
        {"id": "03-bad", "name": "Bad [x]", "commands": ["echo reason; exit 4"]},
    )
    terminal.type(" ".join(command("tasks.json")) + '; echo "status $?"', "Enter")
    screen = terminal.see("bar 50%")
    assert "– 01-quick  Quick  skip_if holds" in screen
    assert "02-slow  Slow" in screen
    assert "2/3" in screen
    assert "    line 3" in screen
    Path("go").touch()
    screen = terminal.see("status 1")
    assert "✓ 02-slow  Slow" in screen
    assert "✗ 03-bad  Bad [x]  exit status 4" in screen
    assert re.search(r"tasks.json:\d+: echo reason; exit 4", screen)
    assert "| reason" in screen
    assert "to resume: taskrunner tasks.json --from 03-bad" in screen
    assert "1 ok, 1 skipped, 1 failed" in screen
    assert "bar 50%" not in screen.split("status 1")[0].split("✓ 02-slow")[1]


def test_ctrl_c_at_a_terminal(terminal: Terminal, write: Write) -> None:
    write(
        {"id": "a", "commands": ["echo working; sleep 60"]},
        {"id": "z", "always": True, "commands": ["touch cleaned"]},
    )
    terminal.type(" ".join(command("tasks.json")) + '; echo "status $?"', "Enter")
    terminal.see("working")
    terminal.type("C-c")
    screen = terminal.see("status 130")
    assert "✓ z" in screen
    assert "cancelled: 1 ok" in screen
    assert Path("cleaned").exists()


def test_colour_only_on_a_terminal(terminal: Terminal, write: Write) -> None:
    write({"id": "a", "commands": ["true"]})
    piped = subprocess.run(command("tasks.json"), capture_output=True, text=True, check=True).stdout
    assert "\033" not in piped

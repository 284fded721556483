"""A real terminal for the tests: tmux."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helpers import wait_for


class Terminal:
    """A terminal of 240 by 40 characters."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ["tmux", "-S", str(socket)]
        environment = f"TASKRUNNER_HOME={os.environ['TASKRUNNER_HOME']}"
        size = ["-x", "240", "-y", "40", "-e", environment, "-e", "LANG=C.UTF-8"]
        subprocess.run(
            [*self._tmux, "-f", "/dev/null", "new-session", "-d", "-s", "t", *size, "bash --norc"], check=True
        )

    def type(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", "-t", "t", *keys], check=True)

    def screen(self) -> str:
        return subprocess.run(
            [*self._tmux, "capture-pane", "-p", "-t", "t"], capture_output=True, text=True, check=True
        ).stdout

    def see(self, text: str) -> str:
        return str(wait_for(lambda: text in self.screen() and self.screen(), what=f"{text!r} on the screen"))

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=True)

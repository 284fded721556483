"""Where the nodes of a sweep meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskrunner.inference.sweep import measured
from tests.helpers import Process, completed
from tests.sshd import free_port

LIB = Path(measured.__file__).parents[1]


class Place:
    """A server of words that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.state, self.port = folder / "words.json", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = ["serve", "--port", str(self.port), "--state", str(self.state)]
        self.process = subprocess.Popen(
            [sys.executable, str(LIB), "rendezvous", *words], stdout=subprocess.PIPE, env=environment()
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def ask(self, *words: str, token: str = "t") -> Process:
        verb, *rest = words
        line = [sys.executable, str(LIB), "rendezvous", verb, "--url", self.url, *rest]
        return completed(line, env=environment(token), timeout=30)


def environment(token: str = "t") -> dict[str, str]:
    return {**os.environ, "RENDEZVOUS_TOKEN": token}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.kill()


def test_a_word_is_heard_and_is_not_taken_back(place: Place) -> None:
    assert place.ask("say", "s1", "run").returncode == 0
    assert place.ask("say", "s1", "run").returncode == 0
    assert "'run' already" in place.ask("say", "s1", "skip").stderr
    heard = place.ask("wait", "s1")
    assert (heard.returncode, heard.stdout) == (0, "run\n")
    assert place.ask("wait", "s1", "--for", "skip").returncode == 1


def test_words_outlive_the_server_that_keeps_them(place: Place) -> None:
    assert place.ask("say", "s1", "run").returncode == 0
    place.kill()
    waiting = subprocess.Popen(
        [sys.executable, str(LIB), "rendezvous", "wait", "--url", place.url, "s1"],
        env=environment(),
        stdout=subprocess.PIPE,
    )
    time.sleep(0.5)
    place.start()
    assert waiting.communicate(timeout=20)[0] == b"run\n"


def test_who_has_no_token_hears_nothing(place: Place) -> None:
    assert place.ask("say", "s1", "run", token="other").returncode == 1
    answer = place.ask("wait", "s1", "--timeout", "1", token="other")
    assert (answer.returncode, "another token" in answer.stderr) == (1, True)


def test_a_wait_ends_with_its_time_or_with_the_server_that_it_is_about(place: Place) -> None:
    began = time.monotonic()
    assert place.ask("wait", "s1", "--timeout", "0.5").returncode == 1
    gone = place.ask("wait", "s1", "--while", f"http://127.0.0.1:{free_port()}/health")
    assert (gone.returncode, "does not answer" in gone.stderr) == (1, True)
    assert time.monotonic() - began < 20

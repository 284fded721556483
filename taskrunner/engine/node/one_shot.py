"""One question, one answer: the engine's side of a command that a controller sends to this machine.

The request (see bootstrap.py) has what to `do` and, as `about`, the arguments of that function; `token`,
which names the answer; and, where there is a bucket, the `grant` to upload what is too long for stdout.
Each request may come twice, and does the same then as if it had come once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time

from .. import VERSION
from ..run import launch, plan_file, retention
from ..store import file_sync, fileio, paths, runs
from ..store.follow import Cursor, RunReader
from . import bootstrap, reply
from .frames import pack
from .requests import RequestHandler
from .wait_slots import WaitSlot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Callable

    from ..plan import Plan

    Launch = Callable[[str, list[str], dict[str, str]], bool] | None

POLL_S = 0.05
"""Seconds between two polls of a run that is followed."""
BATCH_WINDOW_S = 0.1
"""Seconds after the first news in which more of them come along."""
EXPECT = 60.0
"""Seconds in which a run that another command starts must have its directory."""
NEVER = "never"
"""A folder with the ids of runs that must not be started here, though the command to do so may come."""
INSTANCE, STATE = "@taskrunner-instance@", "@taskrunner-state@"
"""What stands in a plan for the id of the instance, and for its state root."""


def main(request: dict[str, Any], launch: Launch = None) -> int:
    """Answer a request. `launch` starts a program detached, under a name, where that is not done by
    the engine itself.
    """
    root = paths.default_root()
    instance = os.environ.get("TASKRUNNER_INSTANCE_ID", "")
    writer = reply.ReplyWriter(root, "%s-%s" % (request["token"], instance), request.get("grant"))
    asked = OneShotHandler(root, writer, launch)
    message, data = asked.answer({"do": request["do"], **request["about"]})
    writer.close(message, data)
    return asked.exit


class OneShotHandler(RequestHandler):
    """What can be asked for in a single command."""

    def __init__(self, root: str, writer: reply.ReplyWriter, launch: Launch) -> None:
        super().__init__(root)
        self.writer = writer
        self.launch = launch
        self.exit = 0

    def do_greet(self) -> dict[str, Any]:
        return {"hello": self.hello()}

    def hello(self) -> dict[str, Any]:
        """What this machine is."""
        return {
            "version": VERSION,
            "python": "%d.%d.%d" % sys.version_info[:3],
            "root": self.root,
            "home": os.path.expanduser("~"),
            "user": os.environ.get("USER", ""),
            "time": time.time(),
        }

    def do_start(
        self,
        run: str,
        plan: Plan | None = None,
        url: str = "",
        digest: str = "",
        parts: int = 0,
        whole: bool = False,
        **following: Any,
    ) -> dict[str, Any]:
        """Start a run, once however often it is asked for, and say how it begins.

        The plan may be at a URL instead, or have come in parts. With `whole`, this process lasts as long as
        the run, and its exit status says whether that went well: 0 or 1, whatever became of the steps.
        """
        if os.path.exists(self._never(run)):
            return {"never": True, "hello": self.hello()}
        if not os.path.exists(os.path.join(paths.run_dir(self.root, run), paths.EVENTS)):
            self._begin(run, plan or self._brought(url, digest, parts))
        if whole:
            return self._awaited(run)
        return self.do_follow(run, **following)

    def do_alive(self, run: str) -> bool:
        # On a busy node an engine takes seconds to come up.
        return super().do_alive(run) or runs.coming_up(self.root, run)

    def _awaited(self, run: str) -> dict[str, Any]:
        time.sleep(BATCH_WINDOW_S)
        while self.do_alive(run):
            time.sleep(1.0)
        self.exit = 0 if (self.do_info(run) or {}).get("status") == "ok" else 1
        return {"hello": self.hello()}

    def _brought(self, url: str, digest: str, parts: int) -> Any:
        with tempfile.TemporaryFile() as file:
            self._bring(file, url, digest, parts)
            file.seek(0)
            text = file.read()
        if hashlib.sha256(text).hexdigest() != digest:
            # Who can write to the bucket could have put another one in its place.
            raise OSError(
                errno.EBADMSG, "the plan that arrived is not the one that was sent", url.partition("?")[0]
            )
        return json.loads(text)

    def _bring(self, file: IO[bytes], url: str, digest: str, parts: int) -> None:
        if url:
            bootstrap.fetch(url, file)
        else:
            bootstrap.gather(self._parts(digest), parts, file, 0)

    def _begin(self, run: str, plan: Plan) -> None:
        paths.claim(self.root, run)
        directory = self.prepare(run, self._of_this_machine(plan))
        try:
            # Where systemd does not take it, or has it already, this starts it: once, whoever is first.
            argv, env = launch.command("service")
            argv[0] = os.path.realpath(argv[0])  # it is not this process that starts it
            env["TASKRUNNER_DIRECTORY"] = directory
            if self.launch is None or not self.launch("taskrunner-" + run, argv, env):
                launch.launch(directory)
        except OSError:
            plan_file.scrub(directory)
            raise
        retention.prune(self.root, run)

    def do_follow(
        self,
        run: str,
        output: str,
        at: list[Any],
        wait: float,
        who: str,
        pace: float = 0.0,
        expected: bool = False,
        until: float = 0.0,
    ) -> dict[str, Any]:
        """Wait until a run has news, at most `wait` seconds or `until` that time, and tell them.

        With `pace`, go on until then, and upload what is new every so many seconds. A run that is
        `expected` may still be about to begin.
        """
        directory = paths.run_dir(self.root, run)
        expecting = time.monotonic() + EXPECT
        while expected and not os.path.exists(directory) and time.monotonic() < expecting:
            time.sleep(POLL_S)
        feed = RunReader(directory, output, Cursor(*at))
        began = first = time.monotonic()
        status: str | None = None
        over = news = False
        at = list(at)
        with WaitSlot(self.root, who) as slot:
            while True:
                for chunk in feed.read():
                    if not news:
                        news, first = True, time.monotonic()
                    self.writer.write(pack({"log": chunk.log, "at": chunk.position}, chunk.data))
                    at = list(chunk.position)
                    if self.writer.full:
                        break
                now = time.monotonic()
                over = feed.over
                if over or self.writer.full:
                    break
                if feed.lost(lambda: self.do_alive(run)):
                    over, status = True, runs.last_words(self.root, run)
                    break
                if news and now - first >= (pace or BATCH_WINDOW_S):
                    if not pace:
                        break
                    self.writer.flush()
                    news = False
                if now - began >= wait or 0.0 < until <= time.time() or slot.wanted():
                    break
                time.sleep(POLL_S)
        return {"over": over, "said": status, "at": at, "more": self.writer.full, "hello": self.hello()}

    def do_cancel(self, run: str, token: str) -> bool:
        if os.path.isdir(paths.run_dir(self.root, run)):
            return super().do_cancel(run, token)
        # The command that starts it may still come; then it is to find this.
        fileio.private_folder(self._never(run))
        return False

    def do_discard(self, run: str) -> None:
        fileio.private_folder(self._never(run))
        super().do_discard(run)

    def _never(self, run: str) -> str:
        return os.path.join(self.root, NEVER, paths.own(run))

    def do_rest(self, token: str, offset: int) -> bytes:
        """What comes next of an answer that was too long."""
        return reply.piece(self.root, token, offset)

    def do_send(self, paths: list[str], offset: int) -> list[int]:
        """The content of files, the first one from an offset on, each followed by its digest. When the
        answer is full, the value is where to go on: the number of the file, and an offset.
        """
        for number, path in enumerate(paths):
            digest, sent = hashlib.sha256(), 0
            for block in file_sync.blocks(self.path(path)):
                digest.update(block)
                sent += len(block)
                if sent > offset:
                    self.writer.write(pack({"piece": number}, block[max(0, len(block) - sent + offset) :]))
                    if self.writer.full:
                        return [number, sent]
            self.writer.write(pack({"digest": digest.hexdigest()}))
            offset = 0
        return [len(paths), 0]

    def do_missing(self, root: str, files: list[dict[str, Any]]) -> list[list[int]]:
        return file_sync.Receiver(self.tick).missing(self.path(root), files)

    def do_part(self, digest: str, number: int, data: str) -> None:
        """Keep a part of what comes in parts."""
        bootstrap.keep(self._parts(digest), number, data)

    def do_unbundle(
        self, root: str, files: list[dict[str, Any]], digest: str, parts: int = 0, url: str = ""
    ) -> None:
        """Put files, which come together in a zip archive, where they belong."""
        folder = self._parts(digest)
        fileio.private_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as archive:
            self._bring(archive, url, digest, parts)
            file_sync.unbundle(archive, self.path(root), files)
        shutil.rmtree(folder, ignore_errors=True)

    def _parts(self, digest: str) -> str:
        return os.path.join(self.root, "parts", paths.own(os.path.basename(digest)))

    def path(self, path: str) -> str:
        return super().path(self._here(path))

    def _here(self, text: str) -> str:
        """A text with the state root of this machine, and its directories of runs, where it stands for
        them.
        """
        text = re.sub(STATE + r"/runs/([0-9-]+)", lambda found: paths.run_dir(self.root, found[1]), text)
        return text.replace(STATE, self.root)

    def _of_this_machine(self, plan: Plan) -> Plan:
        """The plan with the names of this machine where it stands for them: one may be for many."""
        instance = os.environ.get("TASKRUNNER_INSTANCE_ID", "")

        def here(value: Any) -> Any:
            if isinstance(value, str):
                return self._here(value.replace(INSTANCE, instance))
            if isinstance(value, list):
                return [here(item) for item in value]
            if isinstance(value, dict):
                return {name: here(item) for name, item in value.items()}
            return value

        resolved: Plan = here(plan)
        return resolved

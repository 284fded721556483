"""What a controller may ask of the runs and files of a state root, whichever way the question comes."""

from __future__ import annotations

import os

from ..run import launch, plan_file
from ..store import file_sync, fileio, paths, runs
from .frames import PIECE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..plan import Plan


ABOUT = ("file", "fingerprint", "secrets", "given")


class RequestHandler:
    """Each method `do_NAME` is a question, its arguments those of the message that asks it."""

    def __init__(self, root: str) -> None:
        self.root = root

    def answer(self, message: dict[str, Any], *payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Do what the message says; gives `ok` with the value, or bytes where that is bytes, or `error`
        with what went wrong (and `errno`, `path`, where the system has refused something).
        """
        try:
            value = getattr(self, "do_" + message.pop("do"))(*payload, **message)
        except OSError as error:
            said = error.strerror or str(error)
            return {"error": said, "errno": error.errno, "path": error.filename}, b""
        except Exception as error:
            return {"error": "%s: %s" % (type(error).__name__, error)}, b""
        return ({}, value) if isinstance(value, bytes) else ({"ok": value}, b"")

    def do_ping(self) -> None:
        """A sign of life."""

    def do_ready(self) -> str:
        """How the machine's own start went, by cloud-init: "" when it has ended well, or is not used;
        else what it says.
        """
        import subprocess  # slow to import, and seldom needed

        try:
            done = subprocess.run(
                ["cloud-init", "status", "--long"],
                capture_output=True,
                text=True,
                timeout=20,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        lines = [line.strip() for line in done.stdout.splitlines()]
        status = lines[0].partition(":")[2].strip() if lines else "done"
        return "" if status in ("done", "disabled") else " ".join(lines)

    def do_plan(self, run: str) -> dict[str, Any] | None:
        """What a controller needs to know of a plan: no texts, and no values."""
        plan = plan_file.load_plan(paths.run_dir(self.root, run))
        if plan is None:
            return None
        steps = [
            {
                "id": step["id"],
                "index": step["index"],
                "name": step["name"],
                "outputs": step.get("outputs") or [],
                "guard": None if step.get("guard") is None else "",
                "skip": step.get("skip") or {},
            }
            for step in plan["steps"]
        ]
        return {**{name: plan.get(name) for name in ABOUT}, "steps": steps}

    def do_read(self, run: str, name: str, offset: int, limit: int) -> bytes:
        """At most a piece: who wants more asks again."""
        limit = min(limit, PIECE) if limit >= 0 else PIECE
        return fileio.read_by_offset(os.path.join(paths.run_dir(self.root, run), name), offset, limit)

    def do_alive(self, run: str) -> bool:
        return runs.alive(self.root, run)

    def do_cancel(self, run: str, token: str) -> bool:
        """Ask a run to stop, once for each token: a second request would end its clean-up, too."""
        directory = paths.run_dir(self.root, run)
        try:
            os.close(os.open(os.path.join(directory, "cancel-" + token), os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return True
        return launch.cancel(directory) == 0

    def do_followed(self, run: str) -> bool:
        return runs.followed(self.root, run)

    def do_info(self, run: str) -> dict[str, Any] | None:
        return runs.info(self.root, run)

    def do_runs(self) -> list[str]:
        return runs.runs(self.root)

    def do_infos(self, limit: int, live: bool) -> list[dict[str, Any]]:
        return runs.infos(self.root, limit, live)

    def do_discard(self, run: str) -> None:
        runs.discard(self.root, run)

    def do_listing(self, path: str) -> list[dict[str, Any]]:
        return file_sync.listing(self.path(path))

    def do_digest(self, path: str) -> str:
        return file_sync.digest(self.path(path), self.tick)

    def tick(self) -> None:
        """Called in the middle of long work."""

    def path(self, path: str) -> str:
        """A path as a controller says it: `~` is the home here, and where relative ones begin."""
        return os.path.join(os.path.expanduser("~"), os.path.expanduser(path))

    def prepare(self, run: str, plan: Plan) -> str:
        """The directory of a run that is to be started, however often that is asked for."""
        directory = paths.run_dir(self.root, run)
        if not os.path.exists(os.path.join(directory, paths.EVENTS)):
            plan["cwd"] = self.path(plan["cwd"])
            runs.create(self.root, run, plan)
        return directory

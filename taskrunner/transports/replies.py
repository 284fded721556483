"""What a node's answer to a question means: its value, or the error that its system has raised.

A node is not trusted: who has broken into it says what he likes. What it says is taken for what it should
be, or is an error; it never decides where something is written here.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from taskrunner.engine.node.frames import Unpacker, inflated
from taskrunner.engine.plan import Plan
from taskrunner.engine.store.bounded_json import TooLarge
from taskrunner.engine.store.events import fits
from taskrunner.engine.store.follow import Chunk, Cursor
from taskrunner.errors import NoSuchFileError, StateError, TargetError

RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NUMBER = (int, float)
MAYBE_NUMBER = (int, float, type(None))
HELLO: Mapping[str, Any] = {"version": str, "python": str, "root": str, "home": str, "time": NUMBER}
INFO: Mapping[str, Any] = {
    "run": str,
    "name": str,
    "file": str,
    "started": NUMBER,
    "status": str,
    "duration": MAYBE_NUMBER,
    "failures": list,
    "steps": int,
    "step": (dict, type(None)),
}
STEP_AT: Mapping[str, Any] = {"id": str, "index": int, "started": NUMBER}
PLAN: Mapping[str, Any] = {"file": str, "fingerprint": str, "secrets": list, "steps": list}
STEP: Mapping[str, Any] = {"id": str, "index": int, "name": str, "outputs": list, "skip": dict}
OUTPUT: Mapping[str, Any] = {"from": str, "to": str, "bring": str}
FILE: Mapping[str, Any] = {"name": str, "size": int, "mode": int}


class Busy(StateError):
    """Somebody else is at what was asked for; it is worth asking again."""


KINDS = {errno.EAGAIN: Busy, errno.ENOENT: NoSuchFileError}


def value(name: str, message: dict[str, Any], payload: bytes) -> Any:
    """The value in an answer of the node `name`; bytes where it is bytes. Raises StateError."""
    if "error" not in message:
        return message.get("ok", payload)
    where = f"{message['path']}: " if message.get("path") else ""
    kind = KINDS.get(message.get("errno", 0), StateError)
    full = message.get("errno") in (errno.ENOSPC, errno.EDQUOT)
    raise kind(f"{name}: {where}{message['error']}", "free up space there" if full else "")


def strange(name: str, what: object = "") -> TargetError:
    """The error for what no engine says, or says of so much that it is not taken."""
    if isinstance(what, TooLarge):
        return TargetError(
            f"{name}: its reply is too large: {what}", "request less, such as one of the subfolders"
        )
    return TargetError(
        f"{name}: its reply is not from an engine" + (f": {what}" if what else ""),
        "check that it is the right host and has not been compromised",
    )


def messages(name: str, data: bytes, compressed: bool = True) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The messages in what a node has said, at least one. Raises TargetError."""
    count = 0
    try:
        for message, payload in Unpacker().feed(inflated(data) if compressed else data):
            if not isinstance(message, dict):
                raise strange(name)
            count += 1
            yield message, payload
    except ValueError as error:
        raise strange(name, error) from error
    if not count:
        raise strange(name)


def chunk(name: str, message: dict[str, Any], data: bytes) -> Chunk:
    """A piece of a run that is followed. Raises TargetError."""
    at = message.get("at")
    if (
        isinstance(message.get("log"), str)
        and isinstance(at, list)
        and [type(item) for item in at] == [int, str, int]
    ):
        return Chunk(message["log"], data, Cursor(*at))
    raise strange(name)


def number(name: str, found: object) -> int:
    """A count. Raises TargetError."""
    return int(known(name, {"number": found}, {"number": int})["number"])


def missing(name: str, reply: object, files: Sequence[Any]) -> list[tuple[int, int]]:
    """Which files are to be sent, each from an offset on. Raises TargetError."""
    wanted = []
    for item in reply if isinstance(reply, list) else [None]:
        if not (isinstance(item, list) and [type(part) for part in item] == [int, int]):
            raise strange(name)
        index, offset = item
        if not (0 <= index < len(files) and 0 <= offset <= files[index][1]["size"]):
            raise strange(name)
        wanted.append((index, offset))
    return wanted


def known(name: str, reply: object, fields: Mapping[str, Any]) -> dict[str, Any]:
    """An object that has at least these members, of these types; only they are kept. Raises TargetError."""
    if not isinstance(reply, dict):
        raise strange(name)
    for member, kind in fields.items():
        got = reply.get(member)
        if not fits(got, kind):
            raise strange(name, f"{member} is {got if isinstance(got, (int, float)) else type(got).__name__}")
    return {member: reply[member] for member in fields}


def texts(name: str, reply: object) -> list[str]:
    """A list of texts. Raises TargetError."""
    if not isinstance(reply, list) or not all(isinstance(item, str) for item in reply):
        raise strange(name)
    return list(reply)


def runs(name: str, reply: object) -> list[str]:
    """Ids of runs. Raises TargetError."""
    ids = texts(name, reply)
    if not all(RUN.fullmatch(run) for run in ids):
        raise strange(name, "invalid run ids")
    return ids


def info(name: str, reply: object) -> dict[str, Any] | None:
    """What is known of a run (see engine/store/runs.py). Raises TargetError."""
    if reply is None:
        return None
    fields = known(name, reply, INFO)
    texts(name, fields["failures"])
    runs(name, [fields["run"]])
    if fields["step"] is not None:
        fields["step"] = known(name, fields["step"], STEP_AT)
    return fields


def plan(name: str, reply: object) -> Plan | None:
    """What a node tells of a plan (see engine/node/requests.py). Raises TargetError."""
    if reply is None:
        return None
    fields = known(name, reply, PLAN)
    texts(name, fields["secrets"])
    given = reply.get("given") if isinstance(reply, dict) else None
    steps = []
    for index, item in enumerate(fields["steps"]):
        step = {**known(name, item, STEP), "guard": item.get("guard")}
        if step["index"] != index:
            raise strange(name, "steps out of order")
        step["outputs"] = [known(name, output, OUTPUT) for output in step["outputs"]]
        steps.append(step)
    # As much of it as a node tells.
    return cast("Plan", {**fields, "given": texts(name, given or []), "steps": steps})


def listing(name: str, reply: object) -> list[dict[str, Any]]:
    """Files on a node: names are relative and stay below where they are put. Raises TargetError."""
    if not isinstance(reply, list):
        raise strange(name)
    files = [known(name, file, FILE) for file in reply]
    for file in files:
        if "\0" in file["name"] or file["size"] < 0 or file["mode"] < 0:
            raise strange(name, f"invalid file {file['name']!r}")
    return files

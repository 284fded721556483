"""A node that somebody else has taken over says what he likes: nothing is written, kept or shown here for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskrunner import StateError, TargetError
from taskrunner.engine.node.frames import Unpacker, inflated, pack
from taskrunner.engine.store.bounded_json import LONGEST_LINE
from taskrunner.engine.store.events import parse_event
from taskrunner.engine.store.follow import Chunk, Cursor
from taskrunner.runs import Run
from taskrunner.transports import replies, staging
from taskrunner.transports.remote import RemoteTransport

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


class FakeClient:
    """A conversation with a node that answers as it is told."""

    name = "ssh://evil"

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said

    def request(self, do: str, **about: Any) -> Any:
        return self.said[do]

    def ahead(self, paths: object) -> None: ...

    def content(self, path: str, offset: int) -> Iterator[bytes | str]:
        yield from self.said["content"]


class Evil(RemoteTransport):
    """A transport to it."""

    skew = 0.0

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__("ssh://evil")
        self.client = FakeClient(said)

    def _conversation(self) -> Any:
        return self.client

    def _again(self, work: Callable[[], Any]) -> Any:
        return work()

    def _send(self, root: str, files: staging.Files) -> int:
        return 0

    def follow(self, run: str, *, output: str, wait: bool = True) -> Iterator[Chunk | None]:
        for line in self.client.said["events"]:
            yield Chunk("", line, Cursor())


def plan(*outputs: dict[str, str]) -> dict[str, Any]:
    step = {"id": "a", "index": 0, "name": "a", "guard": None, "outputs": list(outputs), "skip": {}}
    return {"file": "f", "fingerprint": "x", "secrets": [], "given": [], "steps": [step]}


FINISHED = json.dumps(
    {"type": "step.finished", "time": 1.0, "step": "a", "index": 0, "status": "ok", "duration": 1}
).encode()
FILE = {"listing": [{"name": "", "size": 4, "mode": 0o100777}], "content": [b"evil", "4a1f"], "digest": "0"}


def found(said: dict[str, Any]) -> list[Any]:
    run = Run("20260101-000000-000000", Evil({**FILE, "events": [FINISHED], **said}), attached=True)  # type: ignore[arg-type]
    return list(run.so_far()) and list(run._collect(json.loads(FINISHED)))


@pytest.mark.parametrize(
    "bring", ["~/.bash_login", "/tmp/x", "../x", ".profile", "a/.ssh/x", "a/../../x", "~root/x"]
)
def test_what_is_found_on_a_node_stays_below_this_folder(bring: str) -> None:
    before = list(Path().rglob("*"))
    (told,) = found({"plan": plan({"from": "/x", "to": "/y", "bring": bring})})
    assert "outside of this folder" in told["message"]
    assert list(Path().rglob("*")) == before


def test_a_link_out_of_this_folder_is_no_way(tmp_path: Path) -> None:
    Path("out").symlink_to(tmp_path)
    (told,) = found({"plan": plan({"from": "/x", "to": "/y", "bring": "out/x"})})
    assert "outside of this folder" in told["message"]


def test_names_below_a_folder_are_looked_at_too() -> None:
    for name in ("../x", "/etc/x", ".bashrc", "a/.ssh/authorized_keys", "a\0b"):
        said = {
            "plan": plan({"from": "/x", "to": "/y", "bring": "results"}),
            "listing": [{"name": name, "size": 1, "mode": 0o100644}],
        }
        try:
            assert "it lists" in found(said)[0]["message"]
        except TargetError as error:
            assert "not from an engine" in str(error)
    assert not list(Path().rglob("*x"))


def test_nothing_that_is_found_becomes_executable() -> None:
    import hashlib

    content = [b"evil", hashlib.sha256(b"evil").hexdigest()]
    assert found({"plan": plan({"from": "/x", "to": "/y", "bring": "x"}), "content": content}) == []
    assert Path("x").stat().st_mode & 0o7777 == 0o644


def test_a_file_that_does_not_end_is_given_up() -> None:
    endless = (b"x" * 1000 for _ in range(10_000))
    with pytest.raises(StateError, match="it changed while it was fetched"):
        Evil({**FILE, "content": endless}).get("/x", "here")
    assert sum(path.stat().st_size for path in Path().rglob("*")) < 10_000


@given(JSON)
def test_an_answer_is_what_it_should_be_or_an_error(said: Any) -> None:
    for read in (replies.plan, replies.info, replies.listing, replies.runs, replies.texts):
        try:
            read("ssh://evil", said)
        except TargetError as error:
            assert "not from an engine" in str(error)


@given(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["step.finished", "run.finished", "service"]),
            "time": JSON,
            "step": JSON,
            "index": JSON,
            "status": JSON,
            "duration": JSON,
            "exit": JSON,
        }
    )
)
def test_an_event_can_be_reckoned_with_or_is_none(event: dict[str, Any]) -> None:
    known = parse_event(json.dumps(event).encode())
    if known is not None:
        assert abs(known["time"]) < 1e15
        assert abs(known.get("duration", 0.0)) < 1e15


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            JSON.map(lambda value: json.dumps(value).encode() + b"\n"),
            st.builds(lambda data: pack({"id": 1}, data), st.binary(max_size=20)),
        ),
        max_size=10,
    ),
    st.lists(st.integers(0, 500), max_size=6),
)
def test_messages_are_the_same_however_they_are_cut(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    points = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]

    def read(pieces: list[bytes]) -> list[Any]:
        unpacker = Unpacker()
        got: list[Any] = []
        try:
            for piece in pieces:
                for message in unpacker.feed(piece):
                    got.append(message)  # what came before an error counts
        except ValueError:
            got.append("refused")
        return got

    assert read([data]) == read([data[a:b] for a, b in zip(points, points[1:], strict=False)])


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (LONGEST_LINE + 1),
        b"[" * 100_000 + b"\n",
        b'{"size":99999999999}\n',
        b'{"size":-1}\n',
        b"[]\n",
        b"NaN\n",
        b"[" + b"{}," * 1_000_000 + b"{}]\n",
    ],
)
def test_what_would_take_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"at once|too deeply|not a message|not a number"):
        list(Unpacker().feed(data))


def test_a_bomb_is_no_answer() -> None:
    import zlib

    with pytest.raises(ValueError, match="too large"):
        inflated(zlib.compress(b"\0" * (64 << 20)))


def test_a_flood_takes_little_memory() -> None:
    """400 MB without an end of a line, in a process of its own."""
    script = """
from taskrunner.engine.node.frames import Unpacker
unpacker = Unpacker()
try:
    for _ in range(400):
        list(unpacker.feed(b"x" * 1_000_000))
except ValueError:
    print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000

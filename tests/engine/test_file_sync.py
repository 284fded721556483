"""Two senders of one file: the one that is late begins again, and leaves nothing behind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from taskrunner.engine.store.file_sync import Receiver

HALF = b"a" * 1000
CONTENT = HALF + b"b" * 1000


@pytest.fixture
def file() -> dict[str, Any]:
    return {"name": "f", "size": len(CONTENT), "mode": 0o644, "digest": hashlib.sha256(CONTENT).hexdigest()}


def receiver() -> Receiver:
    return Receiver(lambda: None)


@pytest.mark.parametrize("offset", [1000, 2000])
def test_one_who_goes_on_where_the_other_has_come_to_the_end(
    tmp_path: Path, file: dict[str, Any], offset: int
) -> None:
    first, second = receiver(), receiver()
    first.receive(str(tmp_path), file, 0, HALF)
    (tmp_path / "f").write_bytes(b"")  # what is to be replaced
    assert second.missing(str(tmp_path), [file]) == [[0, 1000]]
    with pytest.raises(BlockingIOError):
        second.receive(str(tmp_path), file, 1000, CONTENT[1000:])
    first.receive(str(tmp_path), file, 1000, CONTENT[1000:])
    with pytest.raises(BlockingIOError):
        second.receive(str(tmp_path), file, offset, CONTENT[offset:])
    assert second.missing(str(tmp_path), [file]) == []
    assert list(tmp_path.glob(".taskrunner-*")) == []
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_one_who_goes_on_where_the_other_has_begun_again(tmp_path: Path, file: dict[str, Any]) -> None:
    """And was cut: what it has sent is of use."""
    (tmp_path / f".taskrunner-{file['digest'][:24]}.part").write_bytes(HALF[:10])
    late = receiver()
    with pytest.raises(BlockingIOError):
        late.receive(str(tmp_path), file, 1000, CONTENT[1000:])
    assert late.missing(str(tmp_path), [file]) == [[0, 10]]
    late.receive(str(tmp_path), file, 10, CONTENT[10:])
    assert (tmp_path / "f").read_bytes() == CONTENT

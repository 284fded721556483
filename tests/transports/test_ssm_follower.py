"""What is asked of an instance, and when, without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from taskrunner.transports.ssm.client import Answer
from taskrunner.transports.ssm.follower import Follower


class Asked(Exception):
    pass


def test_a_start_that_is_answered_before_anything_has_happened() -> None:
    """As when a second command to start the run has relieved the first: then news is asked for."""

    def post(what: str, about: dict[str, Any], **_: Any) -> None:
        raise Asked(what, about["at"])

    nothing = {"ok": {"at": [0, "", 0], "over": False, "more": False, "said": None}}
    beginning = SimpleNamespace(whole=False, answer=Answer(nothing, b"", []))
    client: Any = SimpleNamespace(
        name="i-0",
        instance="i-0",
        ungranted="",
        skew=0.0,
        post=post,
        dispatcher=SimpleNamespace(followed=set()),
    )
    following = Follower(client, "20261126-000000-000000", "all", "poll", "me", 30.0, beginning)  # type: ignore[arg-type]
    with pytest.raises(Asked) as asked:
        list(following.chunks(wait=True))
    assert asked.value.args == ("follow", (0, "", 0))

"""What an ssm:// target says."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from taskrunner.errors import UsageError

EXPECTED = "expected ssm://[user@]i-0123456789abcdef0[?region=us-east-1&profile=NAME&bucket=NAME]"
INSTANCE = re.compile(r"m?i-[0-9a-f]{8,17}")
QUERY = ("region", "profile", "bucket", "stream")


class Target(NamedTuple):
    """An instance, who to be there ("": whom its image has made), and where in AWS it is."""

    instance: str
    user: str = ""
    region: str = ""
    profile: str = ""
    bucket: str = ""
    stream: str = ""


def parse(target: str) -> Target:
    """The parts of `ssm://[user@]INSTANCE[?region=...]`. Raises UsageError."""
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query))
    unknown = [name for name in query if name not in QUERY]
    user, _, instance = parts.netloc.rpartition("@")
    if unknown or parts.path.strip("/") or not instance:
        raise UsageError(f"{target!r} is not a target", EXPECTED)
    if not INSTANCE.fullmatch(instance):
        raise UsageError(
            f"{instance!r} is not an instance id", "expected an id like i-0123456789abcdef0 (or mi-...)"
        )
    return Target(instance, unquote(user), **query)

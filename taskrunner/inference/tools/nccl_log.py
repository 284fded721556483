"""What a log of NCCL (NCCL_DEBUG=INFO) proves, by its channels; the network that it names proves nothing."""

from __future__ import annotations

import re
from collections import Counter

from .reading import NotAResult, Parsed, record

CHANNEL = re.compile(r"Channel \d+(?:/\d+)? : .* via (\S+(?: Libfabric/\S+)?)")
VERSION = re.compile(r"NCCL version (\S+)")
ONE_NODE = re.compile(r"nNodes 1 ")
NAMED = re.compile(r"Using network (.+)")
WAYS = (
    ("efa", re.compile(r"NET/(?:AWS )?Libfabric")),
    ("tcp", re.compile(r"NET/Socket")),
    ("infiniband", re.compile(r"NET/IB")),
    ("local", re.compile(r"P2P|SHM")),
)


def nccl_log(text: str) -> Parsed:
    """How many channels went over each fabric; `proven` is that between nodes. Raises NotAResult."""
    ways: Counter[str] = Counter()
    gpudirect = 0
    for match in CHANNEL.finditer(text):
        way = next((name for name, pattern in WAYS if pattern.match(match[1])), "")
        if not way:
            raise NotAResult(f"a channel by way of {match[1]}, which is not known")
        ways[way] += 1
        gpudirect += "GDRDMA" in match[1]
    if not ways:
        raise NotAResult("no channel was set up, or NCCL_DEBUG was not INFO")
    between: dict[str, int] = {name: count for name, count in ways.items() if name != "local"}
    alone = "local" if ONE_NODE.search(text) else None
    version, named = VERSION.search(text), NAMED.search(text)
    return record(
        "nccl_log",
        version[1] if version else "",
        notes=["channels went over several fabrics"] if len(between) > 1 else [],
        channels=dict(ways),
        gpudirect_channels=gpudirect,
        network_named=named[1].strip() if named else None,
        # A log that is cut off has the channels inside a node first.
        fabric={"proven": max(between, key=lambda name: between[name]) if between else alone},
    )

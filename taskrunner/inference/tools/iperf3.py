"""What `iperf3 -c HOST -J` prints, of 3.9 and later. Some versions exit with 0 when they have failed."""

from __future__ import annotations

import json
from typing import Any

from .reading import NotAResult, Parsed, last_words, result, row

SHARE = 0.9
"""The share of the asked duration that must have been measured."""


def iperf3(text: str) -> Parsed:
    """What arrived, in both directions of --bidir. Raises NotAResult."""
    try:
        document = json.loads(text)
    except ValueError as error:
        words = "it is cut off" if text.lstrip().startswith("{") else last_words(text)
        raise NotAResult(f"not JSON: {words}") from error
    if not isinstance(document, dict) or not isinstance(document.get("end"), dict):
        raise NotAResult("no output of iperf3 -J")
    if document.get("error"):
        raise NotAResult("iperf3: {}".format(document["error"]))
    start, end = document.get("start", {}), document["end"]
    asked = start.get("test_start", {})
    received = end.get("sum_received")
    if not received or not asked:
        raise NotAResult("nothing was received: there was no server, or it was busy")
    if asked.get("duration") and received["seconds"] < SHARE * asked["duration"]:
        raise NotAResult("only {:.1f} of {:g} s were measured".format(received["seconds"], asked["duration"]))
    backwards = end.get("sum_received_bidir_reverse")
    sent = end.get("sum_sent", {})
    more: dict[str, Any] = {
        "protocol": asked.get("protocol"),
        "streams": asked.get("num_streams"),
        "seconds": received["seconds"],
        "received_bytes": received["bytes"],
        "omitted_seconds": asked.get("omit", 0),
        "reverse": bool(asked.get("reverse")),
        "reverse_bandwidth_gbps": backwards["bits_per_second"] / 1e9 if backwards else None,
        "retransmits": sent.get("retransmits"),
        "processor_percent": {
            side: end.get("cpu_utilization_percent", {}).get(side + "_total") for side in ("host", "remote")
        },
    }
    version = str(start.get("version", "")).partition(" ")[2].split(" ")[0]
    rows = [row(asked.get("blksize") or 0, 1, bandwidth_gbps=received["bits_per_second"] / 1e9)]
    return result("iperf3", rows, version, **more)

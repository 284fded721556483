"""Whether results are there that count: valid, not doubtful, and of the measurement that is asked for.

That of PLACE is in results/PLACE/result.json. What counts is remembered, so that a shell can tell: a file
results/.measured/PLACE/FINGERPRINT is newer.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path("results")
TIMEOUT_S = 5.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past any proxy: it would answer for a server that is down."""
PAUSES_S = (0.3, 0.6, 0.0)
ANY = "any"
"""Instead of a fingerprint: results of other servers and settings count, too."""
MISSING, OTHER = "there is no result", "it is of other servers, settings or versions"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument(
        "results", nargs="+", metavar="PLACE=FINGERPRINT", help="a result, and what it must be of"
    )
    parser.add_argument(
        "--since", type=float, default=0.0, metavar="SECONDS", help="of the epoch: what began before is none"
    )
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="URL",
        help="what measures needs this server: 0 as well when it does not answer",
    )


def main(args: argparse.Namespace) -> int:
    """0 when all of them are there and count, or when a server is missing: there is nothing to be done."""
    missing = []
    for word in args.results:
        place, _, fingerprint = word.rpartition("=")
        reason = why_not(read(RESULTS / place / "result.json"), fingerprint, args.since)
        if reason:
            missing.append(f"{place}: {reason}")
        else:
            _remember(RESULTS / ".measured" / place / fingerprint)
    for line in missing:
        print(line)
    down = [url for url in args.server if missing and not is_up(url)]
    for url in down:
        print(f"{url} does not answer")
    return 1 if missing and not down else 0


def _remember(mark: Path) -> None:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        pass  # a full disk: it is asked for again


def is_up(url: str) -> bool:
    """Whether a server answers; asked again before it is taken for dead."""
    for pause in PAUSES_S:
        try:
            with DIRECT.open(url, timeout=TIMEOUT_S):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(pause)
    return False


def read(path: str | Path) -> dict[str, Any] | None:
    """A record; None where there is none, or it is cut off."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def doubts(record: Mapping[str, Any]) -> list[str]:
    """Why the record of a tool, or of several runs of it, is not valid."""
    runs = record.get("runs")
    parts = (
        [record, *(run for run in runs if isinstance(run, Mapping))] if isinstance(runs, list) else [record]
    )
    return [str(doubt) for part in parts for doubt in part.get("doubts") or []]


def fingerprint_of(record: Mapping[str, Any]) -> Any:
    """What a record says that it is of."""
    metadata = record if record.get("kind") == "low-level" else record.get("metadata")
    return metadata.get("fingerprint") if isinstance(metadata, Mapping) else None


def why_not(record: Mapping[str, Any] | None, fingerprint: Any, since: float = 0.0) -> str:
    """Why a record does not count; "" where it does."""
    if record is None:
        return MISSING
    metadata, results = record.get("metadata"), record.get("results")
    if record.get("kind") == "low-level":
        # Of a tool. One that describes its node has nothing that could be wrong with it.
        metadata, results = record, {"valid": record.get("valid", True), "invalid_because": doubts(record)}
    if not isinstance(metadata, Mapping) or not isinstance(results, Mapping):
        return "it is no result of a measurement"
    if fingerprint not in (ANY, fingerprint_of(record)):
        return OTHER
    if since and (metadata.get("began") or metadata.get("started_at") or 0.0) < since:
        return "it is measured again"
    if not results.get("valid"):
        return "; ".join(map(str, results.get("invalid_because") or ["it is not valid"]))
    if results.get("doubtful"):
        return "; ".join(map(str, results.get("doubtful_because") or ["it is doubtful"]))
    return ""

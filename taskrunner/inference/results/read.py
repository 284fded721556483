"""Result files: those of version 1 become records of version 2; what is none is a clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .schema import DISTRIBUTIONS, STATISTICS, VERSION

SECONDS = (*STATISTICS, "min", "max")


class NoResult(ValueError):
    """The file is not a result. The text says why, and what may help."""


def load(path: str | Path) -> dict[str, Any]:
    """The record in a file. Raises NoResult, OSError."""
    try:
        document = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise NoResult(f"{path}: not JSON ({error}); a result that was cut off cannot be read") from error
    return record(document, str(path))


def record(document: Any, path: str) -> dict[str, Any]:
    """The record of what a file holds. Raises NoResult."""
    if not isinstance(document, dict) or not {"version", "metadata", "results"} <= set(document):
        raise NoResult(
            f"{path}: not a measurement result; `taskrunner bench import {path}` reads those of other clients"
        )
    if document["version"] == 1:
        document = _of_version_1(document, path)
    if document["version"] != VERSION:
        raise NoResult(
            f"{path}: a result of version {document['version']!r}; this taskrunner reads up to {VERSION}"
        )
    from pydantic import ValidationError

    from .model import Record

    try:
        Record.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise NoResult(f"{path}: {where}: {first['msg']} ({error.error_count()} problems)") from None
    return dict(document)


def _of_version_1(document: dict[str, Any], path: str) -> dict[str, Any]:
    """Seconds become milliseconds. It has no rows: gaps are not kept by request."""
    try:
        results = dict(document["results"])
        for name in (*DISTRIBUTIONS, "loop_lag", "send_delay"):
            if name in results:
                results[name] = _in_ms(results[name])
        results["duration_ms"] = results.pop("duration", 0.0) * 1e3
        if "slo" in results:
            results["slo_ms"] = {name: value * 1e3 for name, value in results.pop("slo").items()}
        for name in ("ttft_bimodal", "tpot_bimodal"):
            modes = results.get(name, {}).get("modes", [])
            if modes:
                results[name] = {**results[name], "modes": [[at * 1e3, weight] for at, weight in modes]}
        if "loop_lag" in results:
            lag = results["loop_lag"]
            results["loop_lag"] = {
                "unit": "ms",
                "stalls": 0,
                "max": lag.get("max", 0.0),
                "p50": lag.get("p50", 0.0),
                "p99": lag.get("p99", 0.0),
                "share": 0.0,
            }
        moved = dict(results.get("kv_transfer", {}))
        for old, new in (("transfer_seconds", "transfer_ms"), ("post_seconds", "post_ms")):
            if old in moved:
                moved[new] = moved.pop(old) * 1e3
        results["kv_transfer"] = moved
        notes = [*document["metadata"].get("notes", ()), "a result of version 1: no rows, no circumstances"]
        return {"version": VERSION, "metadata": {**document["metadata"], "notes": notes}, "results": results}
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise NoResult(f"{path}: not a whole result of version 1: {error}") from error


def _in_ms(values: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {"unit": "ms"}
    for name, value in values.items():
        if name in SECONDS:
            value = value * 1e3
        elif name == "raw" or (name.endswith("_interval") and isinstance(value, list)):
            value = [None if each is None else each * 1e3 for each in value]
        figures[name] = value
    return figures

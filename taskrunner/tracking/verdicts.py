"""The verdicts of a sweep as a run of MLflow: ratios as metrics, verdicts as tags, the report as its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from taskrunner.tracking.record import EXPERIMENT, LONGEST_TAG, Record


def record_of_analysis(
    document: Mapping[str, Any], times: tuple[float, float], experiment: str = ""
) -> Record:
    """The record of an analysis, of results that were measured between two times (seconds since the epoch).

    Runs of the same plan have its name in the tag `plan`, this one and those of its patterns.
    """
    plan = str(document["plan"] or document["sweep"])
    key = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    metrics, tags = {}, {"plan": plan, "kind": "analysis"}
    for one in document["comparisons"]:
        tags[f"verdict {one['id']}"] = str(one["verdict"])[:LONGEST_TAG]
        if "ratio" in one:
            metrics[f"{one['id']}_ratio"] = float(one["ratio"])
        if "interval" in one:
            metrics[f"{one['id']}_low"], metrics[f"{one['id']}_high"] = map(float, one["interval"])
    for metric, spread in document["spread"].items():
        if spread:
            metrics[f"{metric}_spread"] = float(spread["sd"])
    for number, alarm in enumerate(document["alarms"], 1):
        tags[f"alarm {number}"] = str(alarm["text"])[:LONGEST_TAG]
    metrics["counting"], metrics["measurements"] = (
        float(document["counting"]),
        float(document["measurements"]),
    )
    began, ended = (int(moment * 1000) for moment in times)
    return Record(
        key, experiment or EXPERIMENT, f"{plan}-analysis", {"plan": plan}, metrics, tags, began, ended
    )

"""A measurement's result as MLflow knows runs: parameters, metrics, tags, and files."""

from __future__ import annotations

import hashlib
import math
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner.errors import UsageError
from taskrunner.inference.results.read import NoResult, load
from taskrunner.inference.results.schema import DISTRIBUTIONS, SCALARS, STATISTICS, TOO_SMALL

EXPERIMENT = "nixl-efa"
PARAMETERS = (
    "model",
    "mode",
    "prompt_tokens",
    "max_tokens",
    "concurrency",
    "rate",
    "warmup",
    "iterations",
    "prefix_cache",
    "prefix_share",
    "fabric",
    "backend",
    "instance_type",
)
LONGEST_NAME, LONGEST_TAG = 250, 5000
"""Characters that every MLflow takes of a name, and of a tag."""
LONGEST = 500
"""Characters of a parameter that every MLflow takes."""


class Record(NamedTuple):
    """One run to be. `key` is that of its content: the same result is logged once. Times in milliseconds."""

    key: str
    experiment: str
    name: str
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    began: int
    ended: int


def record_of(path: str | Path, experiment: str = "") -> Record:
    """The record of a result file. Raises UsageError."""
    try:
        text = Path(path).read_bytes()
        loaded = load(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except NoResult as error:
        raise UsageError(str(error), "`taskrunner bench -o FILE` writes a result") from error
    metadata, results = loaded["metadata"], loaded["results"]
    began, ended = int(metadata["began"] * 1000), int(metadata["ended"] * 1000)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(metadata["began"]))
    way = metadata.get("backend", metadata["mode"])
    name = metadata.get("pattern_id") or f"{way}-{metadata['prompt_tokens']}-c{metadata['concurrency']}"
    tags = {
        _name(name): str(value)[:LONGEST_TAG]
        for name, value in metadata.items()
        if name not in PARAMETERS and isinstance(value, (str, int, float, bool))
    }
    tags["valid"] = str(results["valid"]).lower()
    tags["doubtful"] = str(results.get("doubtful", False)).lower()
    for reasons in ("invalid_because", "doubtful_because"):
        if results.get(reasons):
            tags[reasons] = "; ".join(results[reasons])[:LONGEST_TAG]
    parameters = {name: str(metadata[name])[:LONGEST] for name in PARAMETERS if name in metadata}
    key = hashlib.sha256(text).hexdigest()
    named = f"{name}-{stamp}"
    return Record(key, experiment or EXPERIMENT, named, parameters, metrics(results), tags, began, ended)


def metrics(results: dict[str, Any]) -> dict[str, float]:
    """`ttft_mean`, `ttft_p99`, ... in milliseconds; without percentiles that the samples say nothing of."""
    figures: dict[str, float] = {}
    for name in DISTRIBUTIONS:
        values = results.get(name, {})
        for of in STATISTICS:
            if of in values and values.get(f"{of}_interval") != TOO_SMALL:
                figures[f"{name}_{of}"] = values[of]
    figures.update({name: results[name] for name in SCALARS if name in results})
    for name, value in results.get("kv_transfer", {}).items():
        if isinstance(value, (int, float)):
            figures[_name(f"kv_{name}")] = value
    for name, value in results.get("ttft_parts", {}).items():
        figures[_name(f"ttft_part_{name}")] = value
    return {
        name: value
        for name, value in figures.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _name(text: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w .:/-]|^[./]", "_", text, flags=re.ASCII)[:LONGEST_NAME] or "_"

"""The results of a folder as measurements: what each is of, whether it counts, and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from taskrunner.errors import NotFoundError
from taskrunner.inference.results.read import NoResult
from taskrunner.inference.results.read import record as read_record

SCHEDULE = "schedule.json"
"""What a sweep writes beside its results: patterns, starts, comparisons."""
LARGEST = 1 << 28
"""Bytes of a file that can be a result."""
LEAST_MS, MOST_MS = 1e-9, 1e12
"""What a time can be."""
METRICS = ("ttft", "tpot", "e2e_latency")


class Measurement(NamedTuple):
    """A pattern in a block. `why` is "" where it counts; `queues` where its times contain waiting."""

    pattern: str
    backend: str
    mode: str
    prompt_tokens: int
    concurrency: int
    configuration: str
    block: int
    start: int
    why: str
    queues: bool
    path: str
    record: Mapping[str, Any]

    def value(self, metric: str, statistic: str = "mean") -> float | None:
        """A statistic in milliseconds; None where the record has none that is positive."""
        part = self.record["results"].get(metric)
        found = part.get(statistic) if isinstance(part, Mapping) else None
        return float(found) if isinstance(found, (int, float)) and LEAST_MS < found < MOST_MS else None

    def raw(self, metric: str) -> list[float]:
        """The values of its requests, in the order in which they were sent."""
        part = self.record["results"].get(metric)
        values = part.get("raw") if isinstance(part, Mapping) else None
        return [
            float(one) for one in values or [] if isinstance(one, (int, float)) and LEAST_MS < one < MOST_MS
        ]


class Sweep(NamedTuple):
    """All measurements of a folder, what was planned there, and the files that are no results."""

    name: str
    folder: str
    schedule: Mapping[str, Any]
    measurements: Sequence[Measurement]
    problems: Sequence[str]
    tools: Sequence[Mapping[str, Any]] = ()
    """Records of network and GPU tools."""

    def counting(self) -> list[Measurement]:
        """Those that count."""
        return [one for one in self.measurements if not one.why]

    def command(self, names: Iterable[str], *more: str) -> str:
        """What measures patterns, as it can be typed; "" for no names, or for results of no plan."""
        words = list(dict.fromkeys(names))
        if not words or "plan" not in self.schedule:
            return ""
        begin = self.schedule.get("command") or f"runner experiment {self.schedule['plan']} run"
        return " ".join([begin, *words, *more, self.schedule.get("options", "")]).rstrip()


def load(folder: str | Path, doubtful: bool = False) -> Sweep:
    """The results below a folder; `doubtful` ones count if that is asked for. Raises NotFoundError."""
    place = Path(folder)
    if not place.is_dir():
        raise NotFoundError(f"no folder {str(folder)!r}", "give the folder of a plan's results: results/PLAN")
    problems: list[str] = []
    tools: list[Mapping[str, Any]] = []
    schedule = _schedule(place / SCHEDULE, problems)
    starts_of = {
        (name, start["block"]): start for start in schedule.get("starts", []) for name in start["patterns"]
    }
    found = [
        _measurement(path, record, schedule, starts_of, doubtful)
        for path, record in _records(place, problems, tools)
    ]
    if not found:
        told = f": {problems[0]}" if problems else ""
        raise NotFoundError(f"no result of a measurement is below {folder}{told}", "results/PLAN has them")
    found.sort(key=lambda one: (one.record["metadata"].get("began") or 0.0, one.path))
    starts: dict[tuple[str, int], int] = {}
    numbered = [
        one
        if one.start
        else one._replace(start=starts.setdefault((one.configuration, one.block), len(starts) + 1))
        for one in found
    ]
    return Sweep(place.resolve().name, str(place), schedule, numbered, problems, tools)


class _Start(BaseModel):
    model_config = ConfigDict(extra="allow")
    number: int
    configuration: str
    block: int = 1
    patterns: list[str] = []
    title: str = ""
    why: str = ""


class _Comparison(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: str
    title: str = ""
    metric: str = "ttft"
    pairs: list[tuple[str, str]] = []
    hypothesis: str = ""
    margin: float | str | None = None
    smallest_effect: float | str | None = None


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="allow")
    plan: str = ""
    title: str = ""
    starts: list[_Start] = []
    comparisons: list[_Comparison] = []
    queue: dict[str, str] = {}
    tools: dict[str, str] = {}
    efa_bandwidth_gbps: float | None = None
    gpu_count: float | None = None


def _schedule(path: Path, problems: list[str]) -> dict[str, Any]:
    """What was planned; empty, with a problem, where that is not what a sweep writes."""
    try:
        return _Schedule.model_validate_json(path.read_bytes()).model_dump()
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problems.append(f"{path}: not what a sweep writes: {where}: {first['msg']}")
    return {}


def _records(
    folder: Path, problems: list[str], tools: list[Mapping[str, Any]]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.rglob("*.json")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.name == SCHEDULE or path.name.startswith("sweep-"):
            continue
        try:
            if path.stat().st_size > LARGEST:
                problems.append(f"{path}: larger than any result")
                continue
            document = json.loads(path.read_bytes())
            if isinstance(document, dict) and document.get("kind") == "low-level":
                tools.append(document)
                continue
            yield path, read_record(document, str(path))
        except (OSError, NoResult) as error:
            problems.append(str(error))
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}: not JSON ({error})")


def _measurement(
    path: Path,
    record: Mapping[str, Any],
    schedule: Mapping[str, Any],
    starts: Mapping[tuple[str, int], Mapping[str, Any]],
    doubtful: bool,
) -> Measurement:
    """`starts` are those of the whole plan: a part of it numbers its own."""
    about, results = record["metadata"], record["results"]
    backend = str(about.get("backend") or about.get("fabric") or about["mode"])
    named = f"{backend}-{about['prompt_tokens']}-c{about['concurrency']}"
    pattern = str(about.get("pattern_id") or named)
    block = _whole(about.get("block"), 1)
    planned = starts.get((pattern, block), {})
    start = planned.get("number") or _whole(about.get("start"), 0)
    why = "" if results["valid"] else "; ".join(results.get("invalid_because") or ["it is not valid"])
    if not why and results.get("doubtful") and not doubtful:
        why = "; ".join(results.get("doubtful_because") or ["it is doubtful"])
    return Measurement(
        pattern,
        backend,
        str(about["mode"]),
        int(about["prompt_tokens"]),
        int(about["concurrency"]),
        str(planned.get("configuration") or backend),
        block,
        start,
        why,
        pattern in schedule.get("queue", {}),
        str(path),
        record,
    )


def _whole(value: Any, default: int) -> int:
    text = str(value if value is not None else "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default

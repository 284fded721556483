"""What a plan compares: patterns that are equal but for what is compared, and what can be detected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taskrunner.experiments.models import Comparison
from taskrunner.experiments.patterns import Measurement
from taskrunner.experiments.plan import Plan

MATCH = ("prompt_tokens", "concurrency", "max_tokens")
RESTART_SPREAD = 0.03
"""Standard deviation between restarts of one configuration, on logarithms, until a pilot has measured it."""
LEVEL, POWER = 0.05, 0.8


class Matched(NamedTuple):
    """A comparison with its pairs of patterns."""

    id: str
    title: str
    metric: str
    pairs: tuple[tuple[Measurement, Measurement], ...]
    hypothesis: str
    margin: float | str | None
    smallest_effect: float | str | None


def matched(plan: Plan, chosen: Iterable[Measurement]) -> list[Matched]:
    """The comparisons of a plan over these patterns. A layer's name stands for its patterns."""
    patterns = list(chosen)
    found = []
    for number, comparison in enumerate(_all(plan), 1):
        a, b = _side(comparison, 0), _side(comparison, 1)
        if a is None or b is None:
            continue
        names = comparison.match or MATCH
        others = {_key(one, names): one for one in patterns if _matches(one, b)}
        pairs = tuple(
            (one, others[_key(one, names)])
            for one in patterns
            if _matches(one, a) and _key(one, names) in others and others[_key(one, names)] is not one
        )
        name = comparison.id or comparison.comparison_id or f"CMP-{number:02}"
        title = comparison.name or f"{_said(a)} and {_said(b)}"
        limits = (comparison.margin, comparison.smallest_effect)
        found.append(
            Matched(name, title, comparison.metric or "ttft", pairs, comparison.hypothesis or "", *limits)
        )
    return found


def _all(plan: Plan) -> list[Comparison]:
    older = (plan.file.analysis_plan or {}).get("cross_experiment_comparisons", [])
    return [*(plan.file.comparisons or []), *(Comparison.model_validate(one) for one in older)]


def _side(comparison: Comparison, number: int) -> Mapping[str, Any] | None:
    stated = (comparison.a, comparison.b)[number]
    if stated is not None:
        return stated
    layers = comparison.layers or []
    return {"layer": layers[number]} if len(layers) == 2 else None


def _key(pattern: Measurement, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(pattern.values.get(name) for name in names)


def _matches(pattern: Measurement, side: Mapping[str, Any]) -> bool:
    values = {**pattern.values, "layer": pattern.layer, "id": pattern.id}
    # What a side does not name is as usual: a special pattern is compared only where it is asked for.
    special = pattern.enable_cross_layers_blocks and "enable_cross_layers_blocks" not in side
    return not special and all(
        values.get(name) in wanted if isinstance(wanted, list) else values.get(name) == wanted
        for name, wanted in side.items()
    )


def _said(side: Mapping[str, Any]) -> str:
    return " ".join(str(value) for value in side.values())


def detectable(blocks: int, configurations: int, spread: float = RESTART_SPREAD) -> float | None:
    """The least ratio, less one, that is found in four of five plans; None without replicates.

    (t(1 - level/2) + t(power)) * sqrt(2 / blocks) * spread, with the residual pooled over all replicated
    configurations: (configurations - 1) * (blocks - 1) degrees of freedom.
    """
    freedom = (configurations - 1) * (blocks - 1)
    if freedom < 1:
        return None
    factor = quantile(1 - LEVEL / 2, freedom) + quantile(POWER, freedom)
    return math.exp(factor * math.sqrt(2 / blocks) * spread) - 1


def quantile(probability: float, freedom: int) -> float:
    """Of Student's t, by bisection of its distribution (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        if _two_sided(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _two_sided(value: float, freedom: int) -> float:
    """The probability between -value and value."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = cosine if freedom % 2 else 1.0
    for step in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= (step - 1) / step * cosine**2
        total += term
    if freedom == 1:
        return 2 / math.pi * angle
    return 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total

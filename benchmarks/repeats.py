"""Real sweeps in which nothing differs: `python -m benchmarks repeats`, half an hour.

Servers of two configurations that compute the same (limits of the length that no request comes near) are started
anew in every block; each sweep is a few blocks of these. What says that they differ is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.statistics import intervals_do_not_overlap, welch_on_requests
from benchmarks.sweeps import on_cpu
from taskrunner.analysis import verdicts
from taskrunner.analysis.compare import Asked, compare_all
from taskrunner.analysis.load import METRICS, Measurement, load
from tests.sshd import free_port

SWEEPS, BLOCKS = 20, 3
LENGTHS = (120, 240)
SIDES = {"A": 1024, "B": 1040}
"""Layers, and how long a sequence their servers allow, in tokens."""
PAIRS = [(f"A-{length}", f"B-{length}") for length in LENGTHS]
EFFECTS = (0.0, 0.05, 0.1, 0.2)
"""By how much more B takes, where that is planted."""


def _plan(blocks: int) -> dict[str, Any]:
    return {
        "phase": "repeats",
        "common_settings": {"max_tokens": 16, "warmup_iterations": 5, "measurement_iterations": 30},
        "layers": [
            {
                "id": side,
                "mode": "unified",
                "max_model_len": limit,
                "enable_prefix_caching": False,
                "patterns": [
                    {"id": f"{side}-{length}", "prompt_tokens": length, "concurrency": 1}
                    for length in LENGTHS
                ],
            }
            for side, limit in SIDES.items()
        ],
        "replicates": {"blocks": blocks},
        "comparisons": [{"id": "A-B", "a": {"layer": "A"}, "b": {"layer": "B"}}],
    }


def repeats(folder: Path, sweeps: int = SWEEPS) -> None:
    """Print how many of the sweeps say that equal servers differ, beside two usual rules on the same data; and in
    how many an effect is found that is planted in it: B's times are multiplied.
    """
    # A measurement that another process has disturbed is in the data of all three rules.
    took, results = on_cpu(folder, _plan(sweeps * BLOCKS), free_port(), accepted=(0, 1))
    # The plan, which names the configurations, is not beside the results of the servers' machine.
    measured = [
        one._replace(configuration=one.pattern.partition("-")[0])
        for one in load(results, doubtful=True).counting()
    ]
    complete = [found for number in range(sweeps) if (found := _sweep(measured, number)) is not None]
    print(f"{len(complete)} sweeps of {BLOCKS} blocks, {took / 60:.0f} minutes\n")
    print('| says "differs" | ' + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    rules: dict[str, Callable[[list[Measurement], str], bool]] = {
        "this analysis": _differs,
        "Welch on pooled requests": lambda each, metric: welch_on_requests(_requests(each, metric)),
        "intervals of one server's requests do not overlap": lambda each, metric: intervals_do_not_overlap(
            _requests(each, metric)
        ),
    }
    for name, rule in rules.items():
        counts = (sum(rule(each, metric) for each in complete) for metric in METRICS)
        print(f"| {name} | " + " | ".join(f"{count} of {len(complete)}" for count in counts) + " |")
    print(
        "| standard deviation between starts | " + " | ".join(_spread(measured, m) for m in METRICS) + " |\n"
    )
    print(
        "| planted in B | " + " | ".join(f"{metric}: found, interval holds it" for metric in METRICS) + " |"
    )
    print("|---|" + "---|" * len(METRICS))
    for effect in EFFECTS:
        cells = []
        for metric in METRICS:
            judged = [_compared(_slower(each, metric, effect), metric) for each in complete]
            differing = sum(one["verdict"] == verdicts.DIFFERS for one in judged)
            held = sum(one["interval"][0] <= 1 + effect <= one["interval"][1] for one in judged)
            cells.append(f"{differing}, {held} of {len(complete)}")
        print(f"| {effect:.0%} | {' | '.join(cells)} |")
    print()


def _sweep(measured: list[Measurement], number: int) -> list[Measurement] | None:
    """The results of a sweep; None where some of them are missing."""
    blocks = range(number * BLOCKS + 1, (number + 1) * BLOCKS + 1)
    results = [one for one in measured if one.block in blocks]
    return results if len(results) == BLOCKS * len(SIDES) * len(LENGTHS) else None


def _compared(measured: list[Measurement], metric: str) -> dict[str, Any]:
    asked = Asked("A-B", "", metric, PAIRS, margin="5 %", smallest_effect="0.01 %")
    (found,) = compare_all(measured, [asked])
    return found


def _differs(measured: list[Measurement], metric: str) -> bool:
    return bool(_compared(measured, metric)["verdict"] == verdicts.DIFFERS)


def _slower(measured: list[Measurement], metric: str, effect: float) -> list[Measurement]:
    """The results where B takes longer by this share."""
    return [_multiplied(one, metric, 1 + effect) if one.pattern.startswith("B") else one for one in measured]


def _multiplied(one: Measurement, metric: str, factor: float) -> Measurement:
    results = one.record["results"]
    mean = results[metric]["mean"] * factor
    return one._replace(
        record={**one.record, "results": {**results, metric: {**results[metric], "mean": mean}}}
    )


def _requests(measured: list[Measurement], metric: str) -> Any:
    """Milliseconds of each request: configuration x block x pattern x request."""
    first = min(one.block for one in measured)
    raw = {(one.pattern, one.block - first): one.raw(metric) for one in measured}
    least = min(map(len, raw.values()))
    return np.array(
        [
            [[raw[f"{side}-{length}", block][:least] for length in LENGTHS] for block in range(BLOCKS)]
            for side in SIDES
        ]
    )


def _spread(measured: list[Measurement], metric: str) -> str:
    """Between starts of one configuration, on logarithms."""
    values = []
    for pattern in {one.pattern for one in measured}:
        logs = [np.log(value) for one in measured if one.pattern == pattern and (value := one.value(metric))]
        values.append(np.var(logs, ddof=1))
    return f"{100 * np.sqrt(np.mean(values)):.1f} %"

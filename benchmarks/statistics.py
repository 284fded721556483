"""How often the analysis errs and finds, on simulated sweeps: `python -m benchmarks statistics`.

Model: log y = pattern + configuration + block + restart (sd 3 %) + request (lognormal). Six configurations of
thirteen matched patterns; the first two are compared. The peers' rules get the same data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskrunner.analysis import verdicts
from taskrunner.analysis.compare import Asked, compare_all
from taskrunner.analysis.load import Measurement
from taskrunner.inference.results.modes import bimodal

CONFIGURATIONS, PATTERNS, REQUESTS = 6, 13, 30
RESTART, BLOCK = 0.03, 0.02
SIMULATIONS = 400
NAMES = [f"{configuration}-{pattern}" for configuration in "abcdef" for pattern in range(PATTERNS)]
PAIRS = [(f"a-{pattern}", f"b-{pattern}") for pattern in range(PATTERNS)]


class Case(NamedTuple):
    """One kind of simulated sweep."""

    blocks: int = 3
    cv: float = 0.1
    effect: float = 0.0
    restart: float = RESTART
    base_ms: float = 50.0
    margin: str = "5 %"
    smallest: str = "0.01 %"
    pairs: int = PATTERNS
    within: bool = False
    """Compare patterns of one configuration."""


def requests(chance: Any, case: Case) -> Any:
    """Milliseconds of each request: configuration x block x pattern x request."""
    shape = (CONFIGURATIONS, case.blocks, PATTERNS, REQUESTS)
    logs = np.full(shape, math.log(case.base_ms))
    logs += np.linspace(0, 2, PATTERNS)[None, None, :, None]
    logs[1] += math.log1p(case.effect)
    logs += chance.normal(0, BLOCK, (1, case.blocks, 1, 1))
    logs += chance.normal(0, case.restart, (CONFIGURATIONS, case.blocks, 1, 1))
    sigma = math.sqrt(math.log1p(case.cv**2))
    logs += chance.normal(-(sigma**2) / 2, sigma, shape)
    return np.exp(logs)


def measurements(values: Any) -> list[Measurement]:
    """The same as what the analysis reads."""
    means = values.mean(axis=3)
    cells = []
    for configuration, block, pattern in itertools.product(*map(range, means.shape)):
        name = "abcdef"[configuration]
        record = {"results": {"ttft": {"mean": float(means[configuration, block, pattern])}}}
        start = block * CONFIGURATIONS + configuration + 1
        about = (name, "unified", 1024, 1, name, block + 1, start, "", False, "")
        cells.append(Measurement(f"{name}-{pattern}", *about, record))
    return cells


def verdict(values: Any, case: Case) -> dict[str, Any]:
    """What the analysis says of one sweep."""
    pairs = PAIRS[: case.pairs]
    if case.within:
        # The patterns' own levels are no difference.
        half = PATTERNS // 2
        pairs = [(f"a-{pattern}", f"a-{pattern + half}") for pattern in range(half)]
        values = values * np.exp(-np.linspace(0, 2, PATTERNS))[None, None, :, None]
        values[:, :, half:] *= 1 + case.effect
    asked = Asked("CMP", "", "ttft", pairs, margin=case.margin, smallest_effect=case.smallest)
    (found,) = compare_all(measurements(values), [asked])
    return found


def welch_on_requests(values: Any) -> bool:
    """The usual test of pooled requests, centred by pattern: as if each were independent."""
    from scipy.stats import ttest_ind

    logs = np.log(values[:2])
    logs = logs - logs.mean(axis=(0, 1, 3), keepdims=True)
    return bool(ttest_ind(logs[0].ravel(), logs[1].ravel(), equal_var=False).pvalue < 0.05)


def intervals_do_not_overlap(values: Any) -> bool:
    """The rule of comparing intervals of repeats on one server: here the requests of the first start."""
    logs = np.log(values[:2, 0])
    logs = (logs - logs.mean(axis=(0, 2), keepdims=True)).reshape(2, -1)
    half = 1.96 * logs.std(axis=1, ddof=1) / math.sqrt(logs.shape[1])
    return bool(abs(logs[0].mean() - logs[1].mean()) > half.sum())


def share(case: Case, word: str, simulations: int = SIMULATIONS, seed: int = 0) -> float:
    """In which share of sweeps the verdict is this one."""
    chance = np.random.default_rng(seed)
    count = sum(verdict(requests(chance, case), case)["verdict"] == word for _ in range(simulations))
    return float(count / simulations)


def coverage(case: Case, simulations: int = SIMULATIONS) -> tuple[float, float]:
    """In which share of sweeps the interval, and that of the blocks alone, holds the true ratio."""
    chance = np.random.default_rng(1)
    held = [0, 0]
    for _ in range(simulations):
        judged = verdict(requests(chance, case), case)
        for index, interval in enumerate((judged["interval"], judged["paired"]["interval"])):
            held[index] += interval[0] <= 1 + case.effect <= interval[1]
    return held[0] / simulations, held[1] / simulations


def modes_found(kind: str, simulations: int = SIMULATIONS) -> float:
    """In which share of samples of 30 two modes are told."""
    chance = np.random.default_rng(2)
    found = 0
    for _ in range(simulations):
        sigma = math.sqrt(math.log1p(0.4**2)) if kind == "one" else 0.05
        values = np.exp(chance.normal(0, sigma, REQUESTS))
        if kind == "exponential":
            values = 1 + chance.exponential(1, REQUESTS)
        elif kind != "one":
            slow = int(REQUESTS * float(kind))
            values[:slow] *= math.exp(6 * 0.05)
        found += bimodal(values.tolist())["is_bimodal"]
    return float(found / simulations)


def statistics(_: Path | None = None) -> None:
    """Print all tables."""
    print(f"{SIMULATIONS} simulated sweeps for each figure\n")
    print(
        '| says "differs" when nothing does, at 5 % | B=2, CV 5 % | B=3, CV 5 % | B=5, CV 5 % | B=3, CV 20 % |'
    )
    print("|---|---|---|---|---|")
    cases = [Case(2, 0.05), Case(3, 0.05), Case(5, 0.05), Case(3, 0.2)]
    row("this analysis", [share(case, verdicts.DIFFERS) for case in cases])
    for name, rule in (
        ("Welch on pooled requests", welch_on_requests),
        ("intervals of one server's requests do not overlap", intervals_do_not_overlap),
    ):
        chance = np.random.default_rng(0)
        row(
            name,
            [sum(rule(requests(chance, case)) for _ in range(SIMULATIONS)) / SIMULATIONS for case in cases],
        )
    print("\n| finds an effect, CV 10 % | 5 % | 8 % | 12 % | the interval covers it | of blocks alone |")
    print("|---|---|---|---|---|---|")
    for blocks in (2, 3, 4, 5):
        power = [share(Case(blocks, 0.1, effect), verdicts.DIFFERS) for effect in (0.05, 0.08, 0.12)]
        row(f"B={blocks}", [*power, *coverage(Case(blocks, 0.1, 0.08))])
    print("\n| equivalent within 2 ms of 30 | B=3 | B=5 |\n|---|---|---|")
    for restart in (0.01, 0.02, 0.03):
        equal = [Case(b, 0.05, 0.0, restart, 30.0 / math.e, "2 ms") for b in (3, 5)]
        row(f"restart sd {restart:.0%}", [share(case, verdicts.EQUIVALENT) for case in equal])
    print("\n| two modes are told in 30 requests | share |\n|---|---|")
    for kind, name in (
        ("0.2", "20 % slow, six sd away"),
        ("0.1", "10 % slow, six sd away"),
        ("one", "lognormal, CV 40 %"),
        ("exponential", "exponential tail"),
    ):
        row(name, [modes_found(kind)])
    print()


def row(name: str, values: Sequence[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")

"""What samples say, and how sure that is."""

from __future__ import annotations

import random
import statistics as std
from collections.abc import Callable

import pytest

from taskrunner.inference.bench.precision import GROWTH, known
from taskrunner.inference.results.intervals import percentile_interval
from taskrunner.inference.results.modes import bimodal
from taskrunner.inference.results.summary import summary_of_groups


def test_intervals_hold_what_they_promise() -> None:
    """Of 300 draws of 400 from an exponential: p90's interval has the true one in about 95 of 100."""
    chance = random.Random(5)
    true = 2.302585
    hits = 0
    for _ in range(300):
        interval = percentile_interval(sorted(chance.expovariate(1) for _ in range(400)), 0.9)
        assert not isinstance(interval, str)
        hits += (interval[0] or 1e9) <= true <= (interval[1] or 1e9)
    assert 0.92 < hits / 300 < 0.995
    assert percentile_interval(sorted(range(58)), 0.95) == "n too small"
    assert percentile_interval(sorted(range(59)), 0.95) != "n too small"
    assert percentile_interval(sorted(range(298)), 0.99) == "n too small"


def test_two_kinds_are_told_from_a_long_tail() -> None:
    chance = random.Random(1)
    tail = [chance.lognormvariate(0, 0.5) for _ in range(100)]
    two = [chance.gauss(10, 0.3) for _ in range(50)] + [chance.gauss(13, 0.3) for _ in range(50)]
    assert bimodal(tail)["is_bimodal"] is False
    assert bimodal(tail)["cv"] > 0.3
    found = bimodal(two)
    assert found["is_bimodal"] is True
    assert [mode[0] for mode in found["modes"]] == pytest.approx([10, 13], rel=0.05)
    assert bimodal([1.0] * 5)["is_bimodal"] is False


@pytest.mark.parametrize(
    ("draw", "most"),
    [
        (lambda chance: chance.lognormvariate(0, 0.4), 0.02),
        (lambda chance: 20 + chance.expovariate(1 / 10), 0.06),
        (lambda chance: 20 + chance.expovariate(1 / 5), 0.12),
    ],
)
def test_skewed_data_is_of_one_kind(draw: Callable[[random.Random], float], most: float) -> None:
    chance = random.Random(7)
    flagged = sum(bimodal([draw(chance) for _ in range(30)])["is_bimodal"] for _ in range(100))
    assert flagged / 100 <= most


def test_one_outlier_is_no_second_kind() -> None:
    chance = random.Random(8)
    assert bimodal([*(chance.gauss(20, 0.1) for _ in range(99)), 40.0])["is_bimodal"] is False


@pytest.mark.parametrize(("share", "least"), [(0.2, 0.9), (0.1, 0.75)])
def test_a_slow_group_is_found(share: float, least: float) -> None:
    """Six standard deviations away, of 30 samples."""
    chance, slow = random.Random(9), round(30 * share)

    def draw() -> list[float]:
        shifts = [0.6] * slow + [0.0] * (30 - slow)
        return [chance.lognormvariate(shift, 0.1) for shift in shifts]

    assert sum(bimodal(draw())["is_bimodal"] for _ in range(60)) / 60 >= least


def test_gaps_of_a_stream_belong_together() -> None:
    """Streams differ from each other more than the gaps in them: the interval covers the true mean."""
    chance, hits = random.Random(3), 0
    for _ in range(60):
        streams = [
            [chance.gauss(centre, 0.1) for _ in range(60)]
            for centre in (chance.gauss(10, 1) for _ in range(40))
        ]
        low, high = summary_of_groups(streams)["mean_interval"]
        hits += low <= 10 <= high
    assert hits / 60 > 0.85
    assert summary_of_groups([[1.0, 2.0]] * 5)["p50_interval"] == "n too small"


def test_stopping_at_a_precision_does_not_bias_the_median() -> None:
    """Of 400 measurements of a skewed distribution, each stopped when its median is known to 5 %."""
    chance, hits = random.Random(11), 0
    stopped: list[float] = []
    for _ in range(400):
        values: list[float] = []
        following = 20.0
        while len(values) < 400:
            values.append(chance.lognormvariate(0, 0.2))
            if len(values) >= following:
                following = len(values) * GROWTH
                if known(values, 0.05):
                    break
        stopped.append(std.median(values))
        interval = percentile_interval(sorted(values), 0.5)
        assert not isinstance(interval, str)
        hits += (interval[0] or 9.0) <= 1.0 <= (interval[1] or 0.0)
    assert abs(std.mean(stopped) - 1.0) < 0.005
    assert hits / 400 > 0.9

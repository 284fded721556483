"""The timing of Run Command, as a table."""

from __future__ import annotations

import pytest

from taskrunner.transports.ssm import pacing


@pytest.mark.parametrize(
    ("quiet", "most", "left", "expected"),
    [
        (0.0, 2.5, None, 0.35),
        (10.0, 2.5, None, 0.8),
        (600.0, 2.5, None, 2.5),
        (600.0, 15.0, None, 15.0),
        (600.0, 15.0, 5.0, 6.2),  # its end is known: polled when the status can say so
        (600.0, 2.5, 5.0, 2.5),  # the end is later than the next poll
        (600.0, 15.0, -5.0, 0.35),  # it should have ended: soon
        (600.0, 15.0, -60.0, 15.0),  # that was long ago: its time says nothing
    ],
)
def test_a_command_is_polled_less_often_the_longer_it_is_quiet(
    quiet: float, most: float, left: float | None, expected: float
) -> None:
    assert pacing.poll_pause(quiet, most, left) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("now", "expected"), [(0.0, 60.0), (45.0, 15.0), (50.0, 10.0), (55.0, 65.0), (119.0, 61.0)]
)
def test_nodes_that_are_followed_together_answer_together(now: float, expected: float) -> None:
    assert pacing.news_wait(now, several=True) == pytest.approx(expected)
    assert (now + expected) % pacing.ROUND_S == 0


def test_one_node_may_stay_quiet_for_nearly_an_hour() -> None:
    assert pacing.news_wait(12.0, several=False) < pacing.REQUEST_TIMEOUT_S


def test_the_first_poll_follows_the_quickest_command() -> None:
    first = pacing.FIRST_POLL_S
    for took in (2.0, 0.5, 0.9, 0.01):
        first = pacing.first_poll(first, took)
    assert first == pacing.IDLE_S


def test_listings_become_rarer_up_to_a_limit() -> None:
    pause = pacing.LIST_MIN_S
    for _ in range(100):
        assert pacing.list_pause(pause) >= pause
        pause = pacing.list_pause(pause)
    assert pause == pacing.LIST_MAX_S

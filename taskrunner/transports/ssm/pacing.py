"""When Run Command is polled, how long a node waits for news, and when a request is given up: pure functions
of times in seconds, and their constants.

Source of the limits: AWS Systems Manager API Reference, SendCommand (TimeoutSeconds, executionTimeout), and
its quotas, by which GetCommandInvocation is throttled.
"""

from __future__ import annotations

DELIVERY_TIMEOUT_S = 90.0
"""How long a first connection may take."""
REQUEST_DELIVERY_S = 60
"""In which a request must be delivered, and the parts of the engine arrive."""
REQUEST_TIMEOUT_S = 3600
"""How long a request may take on the node: to fetch much from S3 takes long."""
LONGEST_COMMAND_S = 172_800
"""How long a command can last, and so the time in which a run gives way to the next."""
BATCH_WINDOW_S = 0.03
"""In which requests for other instances may join one."""
FIRST_POLL_S = 0.6
"""After which a command may have ended at the earliest, until it is known how long they take."""
POLL_MIN_S, POLL_MAX_S, POLL_PER_QUIET_S = 0.35, 2.5, 0.08
"""Between two polls of a command: at first, at most, and by how much more for each second without news."""
POLL_STREAMED_S = 15.0
"""The same where its output comes through S3."""
STATUS_DELAY_S = 1.2
"""From the end of a command until its status says so."""
VISIBLE_WITHIN_S = 15.0
"""In which the service may not know a command yet that it has accepted."""
RETRY_MAX_S = 2.0
"""Before a call that has failed for a while is tried again."""
RETRY_S = 1.0
IDLE_S = 0.05
FIRST_NEWS_S = 5.0
"""In which a run that was started must have something to tell: it does at once."""
LONG_POLL_S = 3300.0
"""How long a node waits for news of a quiet run. It may be long: who does not come back is relieved."""
ROUND_S, ROUND_MIN_S = 60.0, 10.0
"""The same where several nodes are followed: all end at one time, and are asked again in one command."""
JOIN_S, JOIN_QUIET_S = 0.3, 1.0
"""How long such a command waits for more nodes; and where there was no news for half a round."""
NO_ANSWER_S = 30.0
"""After its time, in which a node that waits for news must have said so."""
TELL_AFTER_S = 4.0
"""For which AWS may not answer before anybody is told."""
SEGMENT_S = 1.0
"""Between two segments that a node ships to S3, where it is asked to."""
LIST_MIN_S, LIST_MAX_S, LIST_GROWTH = 1.0, 4.0, 1.05
"""Between two listings of such segments: at first, when there were none for long, and how that grows."""


def poll_pause(quiet: float, most: float, left: float | None = None) -> float:
    """The pause before a command is polled again that has said nothing for `quiet` seconds, at most `most`.

    `left` is in how many seconds it ends at the latest, where that is known: commands that end together are
    polled together then.
    """
    pause = min(most, max(POLL_MIN_S, quiet * POLL_PER_QUIET_S))
    if left is not None and -VISIBLE_WITHIN_S < left + STATUS_DELAY_S < pause:
        return max(POLL_MIN_S, left + STATUS_DELAY_S)
    return pause


def first_poll(before: float, took: float) -> float:
    """When the next command is polled first, after one that `took` so long: hardly before the quickest."""
    return min(before, max(IDLE_S, took * 0.8))


def news_wait(now: float, several: bool) -> float:
    """How long a node waits for news. Where several are followed, to the end of this round or the next."""
    if not several:
        return LONG_POLL_S
    left = ROUND_S - now % ROUND_S
    return left + ROUND_S * (left < ROUND_MIN_S)


def join_window(quiet: float) -> float:
    """How long the command for one of several nodes waits for others, after so many seconds without news."""
    return JOIN_S if quiet < ROUND_S / 2 else JOIN_QUIET_S


def list_pause(before: float) -> float:
    """The pause before S3 is listed again, after one that brought nothing."""
    return min(before * LIST_GROWTH, LIST_MAX_S)

"""The order of configurations with the shortest summed set-up, and the blocks that repeat it.

Exact for few (dynamic programming over subsets, Held and Karp 1962), else by moves of one to three (Or-opt)
from several starting points.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from taskrunner.experiments.configurations import Configuration, setup

EXACT = 13
"""Configurations up to which the order is exact: half a second."""
RESTARTS = 20
NUDGE = 1e-6
"""Minutes that decide between orders of the same length."""
Before = Mapping[int, frozenset[int]]
"""For each, those that must come before it."""
Cost = Callable[[int | None, int], float]


class Start(NamedTuple):
    """One life of a configuration's servers: in which block, why, and what is measured in it."""

    block: int
    number: int
    configuration: Configuration
    why: str
    minutes: float
    patterns: tuple[str, ...]


def shortest(count: int, cost: Cost, before: Before) -> list[int]:
    """The order of 0 to count - 1 with the least summed cost; `cost(None, i)` is that of the first."""
    if count <= EXACT:
        return _exact(count, cost, before)
    return _improved(count, cost, before)


def _exact(count: int, cost: Cost, before: Before) -> list[int]:
    needs = [sum(1 << other for other in before.get(one, ())) for one in range(count)]
    best: dict[tuple[int, int], tuple[float, int | None]] = {
        (1 << one, one): (cost(None, one), None) for one in range(count) if not needs[one]
    }
    layer = dict(best)
    for _ in range(count - 1):
        found: dict[tuple[int, int], tuple[float, int | None]] = {}
        for (done, last), (spent, _previous) in layer.items():
            for one in range(count):
                bit = 1 << one
                if done & bit or needs[one] & ~done:
                    continue
                key, total = (done | bit, one), spent + cost(last, one)
                if key not in found or total < found[key][0]:
                    found[key] = (total, last)
        best |= found
        layer = found
    state: tuple[int, int] | None = min(layer, key=lambda key: (layer[key][0], key[1]), default=None)
    order: list[int] = []
    while state is not None:
        done, last = state
        order.append(last)
        previous = best[state][1]
        state = None if previous is None else (done & ~(1 << last), previous)
    return order[::-1]


def _improved(count: int, cost: Cost, before: Before) -> list[int]:
    chance = random.Random(count)
    best: list[int] = []
    least = float("inf")
    for attempt in range(RESTARTS):
        order = _nearest(count, cost, before, chance if attempt else None)
        spent = _total(order, cost)
        moved = True
        while moved:
            moved = False
            for size, start in itertools.product((1, 2, 3), range(count)):
                segment, rest = order[start : start + size], order[:start] + order[start + size :]
                for place in range(len(rest) + 1):
                    candidate = rest[:place] + segment + rest[place:]
                    total = _total(candidate, cost)
                    if total < spent - 1e-9 and _allowed(candidate, before):
                        order, spent, moved = candidate, total, True
                        break
                if moved:
                    break
        if spent < least - 1e-9:
            best, least = order, spent
    return best


def _nearest(count: int, cost: Cost, before: Before, chance: random.Random | None) -> list[int]:
    order: list[int] = []
    while len(order) < count:
        last = order[-1] if order else None
        open_ones = [
            one for one in range(count) if one not in order and before.get(one, frozenset()) <= set(order)
        ]
        ranked = sorted(open_ones, key=lambda one: (cost(last, one), one))
        order.append(chance.choice(ranked[:3]) if chance else ranked[0])
    return order


def _total(order: Sequence[int], cost: Cost) -> float:
    return sum(cost(last, one) for last, one in zip((None, *order), order, strict=False))


def _allowed(order: Sequence[int], before: Before) -> bool:
    seen: set[int] = set()
    for one in order:
        if not before.get(one, frozenset()) <= seen:
            return False
        seen.add(one)
    return True


def lower_bound(count: int, cost: Cost) -> float:
    """What no order is below: each needs at least its cheapest set-up."""
    return sum(min(cost(last, one) for last in (None, *range(count)) if last != one) for one in range(count))


def ordered(
    made: Sequence[Configuration],
    minutes: Mapping[str, float],
    layers: Mapping[str, frozenset[str]],
    compared: Callable[[Configuration, Configuration], bool] = lambda one, other: False,
) -> list[Configuration]:
    """Configurations in the best order; `layers` are the layers that must come before each.

    Of orders with the same set-up, one with compared configurations side by side, and that of the plan.
    """
    before = {
        number: frozenset(
            other for other, one in enumerate(made) if one.layer in layers.get(configuration.layer, ())
        )
        for number, configuration in enumerate(made)
    }
    spent = _cost(made, minutes)

    def cost(last: int | None, one: int) -> float:
        if last is None:
            return spent(last, one) + NUDGE * one
        apart = 0 if compared(made[last], made[one]) else 100
        return spent(last, one) + NUDGE * (
            apart + (abs(one - last) if one > last else len(made) + last - one)
        )

    return [made[number] for number in shortest(len(made), cost, before)]


def bound(made: Sequence[Configuration], minutes: Mapping[str, float]) -> float:
    """The lower bound of one pass, in minutes."""
    return lower_bound(len(made), _cost(made, minutes))


def _cost(made: Sequence[Configuration], minutes: Mapping[str, float]) -> Cost:
    table = {
        (last, one): setup(None if last is None else made[last], made[one], minutes)
        for one in range(len(made))
        for last in (None, *range(len(made)))
    }
    return lambda last, one: table[last, one]


def starts(
    order: Sequence[Configuration],
    minutes: Mapping[str, float],
    blocks: int,
    replicated: Callable[[Configuration], bool],
    picked: Collection[str],
    alternating: bool = True,
) -> list[Start]:
    """All starts, with the patterns that are picked: every block has each replicated configuration once, the
    first one all of them.

    Every other block runs backwards, so that a slow drift of the machines changes no comparison much; its
    patterns descend. Nothing is kept from one block to the next: the restart is the replicate.
    """
    made: list[Start] = []
    for block in range(1, blocks + 1):
        backwards = alternating and block % 2 == 0
        members = [one for one in order if block == 1 or replicated(one)]
        last: Configuration | None = None
        for configuration in reversed(members) if backwards else members:
            patterns = [pattern.id for pattern in configuration.patterns if pattern.id in picked]
            why = _why(last, configuration, block)
            spent = setup(last, configuration, minutes)
            ids = tuple(reversed(patterns) if backwards else patterns)
            made.append(Start(block, len(made) + 1, configuration, why, spent, ids))
            last = configuration
    return made


def _why(before: Configuration | None, after: Configuration, block: int) -> str:
    if before is None:
        return "the first" if block == 1 else f"block {block} starts anew"
    if before.mode != after.mode:
        return f"{after.mode} instead of {before.mode}"
    changed = [
        f"{name} {before.variables[name] or '-'} to {value or '-'}"
        for name, value in after.variables.items()
        if before.variables[name] != value
    ]
    return ", ".join(changed)

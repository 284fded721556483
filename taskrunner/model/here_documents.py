"""Here-documents in the texts of a task file: where one ends, and where nothing in it is replaced."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence

HERE_DOCUMENT = re.compile(
    r"""(?<!<)<<(?!<)(?P<tabs>-)?[ \t]*"""
    r"""(?:"(?P<double>[^"\n]+)"|'(?P<single>[^'\n]+)'|(?P<escape>\\)?(?P<bare>[^\s;&|<>()'"`\\]+))"""
)
"""The operator of a here-document and its delimiter, which is quoted where nothing in its body is
replaced.
"""
Span = tuple[int, int]


class Following:
    """The lines that follow an element in the same shell."""

    def __init__(self, elements: Sequence[str]) -> None:
        self._last: dict[str, int] = {}
        self.index = 0
        """The element whose following lines are meant."""
        if not any("<<" in element for element in elements):
            return  # nobody asks
        for index, element in enumerate(elements):
            for line in element.split("\n"):
                self._last[line] = self._last[line.lstrip("\t")] = index

    def __contains__(self, line: object) -> bool:
        return self._last.get(str(line), -1) > self.index


def literals(elements: Sequence[str]) -> list[list[Span]]:
    """For each of the elements that are read by one shell, where the body of a quoted here-document
    stands in it.
    """
    spans: list[list[Span]] = [[] for _ in elements]
    if not any("<<" in element for element in elements):
        return spans
    lines = [(index, line) for index, element in enumerate(elements) for line in element.split("\n")]
    starts: list[int] = []
    for element in elements:
        offset = 0
        for line in element.split("\n"):
            starts.append(offset)
            offset += len(line) + 1
    ends: dict[str, list[int]] = {}
    """Of each line the numbers of those like it; with tabs before it, of those behind a tab."""
    for number, (_, line) in enumerate(lines):
        ends.setdefault(line, []).append(number)
        if line.startswith("\t"):
            ends.setdefault("\t" + line.lstrip("\t"), []).append(number)
    number = 0
    while number < len(lines):
        line = lines[number][1]
        opened = [] if line.lstrip().startswith("#") else list(HERE_DOCUMENT.finditer(line))
        number += 1
        for match in opened:
            delimiter = match["double"] or match["single"] or match["bare"]
            end = _end_of(ends, number, delimiter, bool(match["tabs"]))
            if end is None:
                continue
            for inside in range(number, end) if not match["bare"] or match["escape"] else ():
                index, body = lines[inside]
                spans[index].append((starts[inside], starts[inside] + len(body)))
            number = end + 1
    return spans


def _end_of(ends: Mapping[str, Sequence[int]], start: int, delimiter: str, tabs: bool) -> int | None:
    """The number of the line that ends a here-document; None where there is none, so that it is not one."""
    found: list[int] = []
    for line in (delimiter, "\t" + delimiter) if tabs else (delimiter,):
        numbers = ends.get(line, ())
        place = bisect_left(numbers, start)
        found += numbers[place : place + 1]
    return min(found, default=None)

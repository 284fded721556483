"""`taskrunner analyze`: the verdicts of a sweep's results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskrunner.errors import NotFoundError

if TYPE_CHECKING:
    from taskrunner.cli import typed

ALARM = 1
EXTRA = "pip install 'taskrunner[report]'"


def analyze(args: typed.Analyze) -> int:
    """Print the verdicts; 1 when there is an alarm, or a regression against the other sweep."""
    document = analysed(args.results, args.doubtful, args.against, args.margin)
    from taskrunner.analysis import analysis, text

    if args.json:
        print(json.dumps(document, indent=1))
    else:
        print("\n".join(text.lines(document)))
    return ALARM if analysis.alarming(document) else 0


def analysed(folder: str, doubtful: bool = False, other: str = "", margin: str = "5 %") -> dict[str, Any]:
    """The analysis of a folder. Raises NotFoundError."""
    with needs_extra():
        from taskrunner.analysis import analysis
        from taskrunner.analysis.against import against
        from taskrunner.analysis.load import load

        sweep = load(folder, doubtful)
        document = analysis.analysis(sweep)
        if other:
            document["comparisons"] = against(sweep, load(other, doubtful), margin)
    return document


@contextlib.contextmanager
def needs_extra() -> Iterator[None]:
    """Say what to install where a library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotFoundError(f"{error.name} is not installed", EXTRA) from error

"""Five verdicts: differs, differs but negligible, equivalent, undecided, not measurable."""

from __future__ import annotations

import math
import re
from typing import Any

DIFFERS = "differs"
NEGLIGIBLE = "differs but negligible"
EQUIVALENT = "equivalent"
UNDECIDED = "undecided"
NOT_MEASURABLE = "not measurable"
OF_THESE_STARTS = "of these starts"
"""No verdict: there are no replicates."""
SMALLEST_EFFECT = 0.05
"""The share from which on a difference matters, unless the plan says otherwise."""
AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%|ms|)\s*")


def on_logarithms(amount: Any, reference_ms: float, default: float = SMALLEST_EFFECT) -> float:
    """What "2 ms", "5 %" or 0.05 (a share) is on logarithms, at a reference of so many milliseconds."""
    match = AMOUNT.fullmatch(str(amount))
    if match is None or not float(match[1]):
        share = default
    elif match[2] == "ms":
        share = float(match[1]) / reference_ms
    else:
        share = float(match[1]) / (100 if match[2] == "%" else 1)
    return math.log1p(share)

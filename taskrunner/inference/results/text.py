"""A result for people: a table, a histogram of the TTFT, and what was moved or failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .schema import DISTRIBUTIONS, TOO_SMALL
from .ttft_parts import TITLES

BINS, WIDTH = 8, 40
EIGHTHS = " ▏▎▍▌▋▊▉"


def report(results: dict[str, Any]) -> str:
    """The `results` of a measurement; milliseconds."""
    lines = [f"{'ms':<16}{'mean':>9}{'p50':>9}{'p90':>9}{'p95':>9}{'p99':>9}{'n':>7}"]
    for name, title in DISTRIBUTIONS.items():
        values = results.get(name, {})
        if title and values.get("n"):
            cells = [_cell(values, at) for at in ("mean", "p50", "p90", "p95", "p99")]
            lines.append(f"{title:<16}{''.join(cells)}{values['n']:>7}")
    lines += histogram("TTFT, ms", results["ttft"].get("raw", ()))
    tail = f"{results['throughput_rps']:.2f} requests/s, {results['throughput_tps']:.1f} output tokens/s"
    lines.append(f"{tail}; {results['completed']} ok, {results['failed']} failed")
    moved = results.get("kv_transfer", {})
    if moved.get("bytes"):
        lines.append(f"KV moved: {moved['bytes'] / 1e6:.2f} MB in {moved.get('transfers', 0):g} transfers")
    parts = results.get("ttft_parts")
    if parts:
        lines.append(
            "mean TTFT, ms: " + ", ".join(f"{title} {parts[name]:.1f}" for name, title in TITLES.items())
        )
    if results.get("goodput") is not None:
        within = ", ".join(f"{name} {limit:g} ms" for name, limit in results["slo_ms"].items())
        lines.append(f"goodput: {results['goodput']:.1%} of the requests within {within}")
    lines += results.get("first_errors", [])
    lines += reasons(results)
    return "\n".join(lines)


def reasons(results: dict[str, Any]) -> list[str]:
    """A line for each reason why a result is not valid, or doubtful."""
    return [
        *(f"not valid: {reason}" for reason in results["invalid_because"]),
        *(f"doubtful: {reason}" for reason in results.get("doubtful_because", ())),
    ]


def _cell(values: dict[str, Any], at: str) -> str:
    """A figure; `-` for a percentile that so few samples say nothing of."""
    few = values.get(f"{at}_interval") == TOO_SMALL
    return f"{'-':>9}" if few else f"{values[at]:>9.2f}"


def histogram(title: str, values: Sequence[float]) -> list[str]:
    """Lines with a bar for each of a few equal ranges; none where there is nothing to compare."""
    if len(set(values)) < 2:
        return []
    counts, edges = np.histogram(np.asarray(values), BINS)
    lines = [title]
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        whole, rest = divmod(round(WIDTH * 8 * int(count) / int(counts.max())), 8)
        bar = ("█" * whole + EIGHTHS[rest]).rstrip()
        lines.append(f"{low:>9.2f} to {high:>8.2f} {bar}{' ' if bar else ''}{count}")
    return lines

"""An analysis for people, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskrunner.analysis import verdicts


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The whole of it: comparisons, what was found beside, what was left out."""
    counts = f"{document['counting']} of {document['measurements']} results count"
    yield f"{document['sweep']}: {counts}"
    yield from table(document["comparisons"])
    yield from _beside(document)
    for one in document["left_out"]:
        yield f"left out: {one['pattern']}, block {one['block']}: {one['why']}"
    for name in document["fingerprints_mixed"]:
        yield f"mixed: {name} has results of different servers or settings"
    yield from (f"not read: {problem}" for problem in document["problems"])


def table(comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each comparison: ratio and interval, verdict."""
    if not comparisons:
        return
    yield ""
    width = max(len(one["id"]) for one in comparisons)
    yield f"{'':<{width}}  {'metric':<11}  {'b / a':>6}  {'95 % interval':>14}  {'ms':>8}  verdict"
    for one in comparisons:
        ratio, difference = one.get("ratio"), one.get("difference_ms")
        shown = f"{ratio:>6.3f}" if ratio else f"{'-':>6}"
        between = "{:.3f}–{:.3f}".format(*one["interval"]) if "interval" in one else "-"
        apart = f"{difference:>+8.2f}" if difference is not None else f"{'-':>8}"
        yield f"{one['id']:<{width}}  {one['metric']:<11}  {shown}  {between:>14}  {apart}  {verdict(one)}"
    yield ""
    for one in comparisons:
        sides = f"{one['b']} / {one['a']}: " if "ratio" in one else ""
        expected = f". Expected: {one['hypothesis']}" if one["hypothesis"] else ""
        yield f"{one['id']}: {sides}{one['title']}{expected}"


def verdict(one: Mapping[str, Any]) -> str:
    """The verdict with what belongs to it: what it lacks, or what it would have found."""
    word = str(one["verdict"])
    if word in (verdicts.NOT_MEASURABLE, verdicts.OF_THESE_STARTS):
        return f"{word} ({one['why']})"
    if word == verdicts.UNDECIDED:
        more = one.get("more_blocks")
        needs = f"needs {more} more block{'s'[: more != 1]}" if more else "needs over a hundred blocks"
        return f"{word} ({needs}; {one['detectable']:.1%} would be found)"
    if word == verdicts.EQUIVALENT:
        return f"{word} (within {one['equivalence']:.1%})"
    return word


def layer(one: Mapping[str, Any]) -> str:
    """A ratio of two layers: with its range where there are several, and what is expected."""
    values, expected = one["values"], one["expected"]
    about = [f"{min(values):.2f} to {max(values):.2f} in {len(values)}"] if len(values) > 1 else []
    if expected:
        usual = "" if one["as_expected"] else "; this is outside"
        about.append(f"expected {expected[0]:g} to {expected[1]:g}{usual}")
    return f"{one['id']}: {one['title']}: {one['ratio']:.2f}" + (f" ({'; '.join(about)})" if about else "")


def _beside(document: Mapping[str, Any]) -> Iterator[str]:
    for metric, spread in document["spread"].items():
        if spread:
            yield f"between starts: {metric} {spread['sd']:.1%} ({spread['freedom']} degrees of freedom)"
    for one in document["transfer_cost"]:
        interval = one["interval_us"]
        between = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else " (one block)"
        yield f"transfer over {one['backend']}: {one['us_per_token']:.2f} µs a token{between}"
    for one in document["bandwidths"]:
        share = f", {one['share']:.0%} of the {one['raw_gbps']:.1f} of a network tool" if one["share"] else ""
        yield f"KV cache over {one['backend']}: {one['achieved_gbps']:.2f} Gbit/s{share}"
    yield from map(layer, document["layers"])
    if values := [one["mean_ms"] for one in document["proxy_overhead"]]:
        yield f"TTFT that no server counts (proxy, network, HTTP): {min(values):.2f} to {max(values):.2f} ms"
    for one in document["one_mode_per_start"]:
        yield f"one mode per start: {one['pattern']}: starts differ more than requests do"
    for alarm in document["alarms"]:
        yield f"alarm: {alarm['text']}"
        if alarm["command"]:
            yield f"  look closer: {alarm['command']}"

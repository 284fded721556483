"""The figures of a report, in Vega-Lite by Altair: colours and shapes that also tell without colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

Words = Callable[[str], str]
Rows = Sequence[Mapping[str, Any]]
Figure = Any
"""A chart of Altair, layered or not."""
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f"]
"""Okabe and Ito (2008): told apart by those who do not see red or green."""
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]
WIDTH, HEIGHT = 400, 280
LOW, HIGH = ("low", "from", "floor_low"), ("high", "to", "floor_high")
NARROWEST = 1e-6
"""The lowest value of a logarithmic scale, as a share of the highest."""
GREY = "#888888"
"""Seen on light and on dark."""


def _data(rows: Rows) -> Any:
    return alt.Data(values=list(rows))  # type: ignore[no-untyped-call]


def _backends(rows: Rows, word: Words) -> dict[str, Any]:
    names = sorted({str(row["backend"]) for row in rows})
    title = word("backend")
    return {
        "color": alt.Color("backend:N", title=title, scale=alt.Scale(domain=names, range=PALETTE)),
        "shape": alt.Shape("backend:N", title=title, scale=alt.Scale(domain=names, range=SHAPES)),
    }


def _around(low: Sequence[float], high: Sequence[float]) -> Any:
    """A logarithmic scale a little wider than the values."""
    least = max(min(low), max(high) * NARROWEST)
    margin = (max(high) / least) ** 0.06
    return alt.Scale(type="log", domain=[least / margin, max(high) * margin], nice=False)


def forest(comparisons: Rows, word: Words) -> Figure | None:
    """Ratios with their intervals, the zone of equivalence, and what would have been found."""
    rows = [
        {
            "id": one["id"],
            "ratio": one["ratio"],
            "low": one["interval"][0],
            "high": one["interval"][1],
            "verdict": one["verdict"],
            "from": 1 / (1 + one["equivalence"]),
            "to": 1 + one["equivalence"],
            "floor_low": 1 / (1 + one["detectable"]),
            "floor_high": 1 + one["detectable"],
        }
        for one in comparisons
        if "interval" in one
    ]
    if not rows:
        return None
    base = alt.Chart(_data(rows)).encode(y=alt.Y("id:N", title=None, sort=None))
    low, high = ([row[name] for row in rows for name in names] for names in (LOW, HIGH))
    scale = _around(low, high)
    zone = base.mark_bar(height=18, opacity=0.25, color="#009E73").encode(
        x=alt.X("from:Q", title=word("b / a, 95 % interval"), scale=scale), x2="to:Q"
    )
    floor = base.mark_rule(strokeDash=[2, 3], color=GREY).encode(
        x=alt.X("floor_low:Q", scale=scale), x2="floor_high:Q"
    )
    line = base.mark_rule(strokeWidth=3, color="#0072B2").encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    dot = base.mark_point(filled=True, size=90, color="#0072B2", opacity=1).encode(
        x=alt.X("ratio:Q", scale=scale),
        tooltip=["id:N", "ratio:Q", "low:Q", "high:Q", "verdict:N"],
    )
    one = alt.Chart(_data([{"x": 1}])).mark_rule(color=GREY).encode(x=alt.X("x:Q", scale=scale))
    return alt.layer(zone, one, floor, line, dot).properties(width=2 * WIDTH, height=max(40 * len(rows), 80))


def lengths(cells: Rows, metric: str, word: Words) -> Figure | None:
    """A metric against the prompt's length: a dot for each start, a line through their means."""
    rows = [row for row in cells if row["counts"] and row.get(f"{metric}_mean")]
    if not rows:
        return None
    title, values = f"{word(metric)} (ms)", [row[f"{metric}_mean"] for row in rows]
    scale = _around(values, values)
    x = alt.X("prompt:Q", title=word("prompt tokens"), scale=alt.Scale(type="log", nice=False, padding=12))
    base = alt.Chart(_data(rows))
    line = base.mark_line(opacity=0.6).encode(
        x=x,
        y=alt.Y(f"mean({metric}_mean):Q", title=title, scale=scale),
        color=_backends(rows, word)["color"],
        strokeDash=alt.StrokeDash("streams:N", title=word("concurrency")),
    )
    dots = base.mark_point(size=50, filled=False, strokeWidth=1.5).encode(
        x=x,
        y=alt.Y(f"{metric}_mean:Q", title=title, scale=scale),
        href="link:N",
        fillOpacity=alt.condition("datum.queues", alt.value(0.0), alt.value(0.5)),
        tooltip=[
            "pattern:N",
            "block:Q",
            "start:Q",
            alt.Tooltip(f"{metric}_mean:Q", format=".4g"),
            "queues:N",
        ],
        **_backends(rows, word),
    )
    return alt.layer(line, dots).properties(width=WIDTH, height=HEIGHT)


def pareto(cells: Rows, gpus: Mapping[str, int], word: Words) -> Figure | None:
    """Tokens a second of one user against those of one GPU, by concurrency."""
    rows = [
        {**row, "user": 1000 / row["tpot_mean"], "gpu": row["tps"] / max(1, gpus.get(str(row["backend"]), 1))}
        for row in cells
        if row["counts"] and row.get("tpot_mean") and row.get("tps")
    ]
    if not rows:
        return None
    return (
        alt.Chart(_data(rows))
        .mark_point(size=60, filled=True)
        .encode(
            x=alt.X("user:Q", title=word("tokens/s of one user"), scale=alt.Scale(zero=False)),
            y=alt.Y("gpu:Q", title=word("tokens/s of one GPU"), scale=alt.Scale(zero=False)),
            href="link:N",
            tooltip=[
                "pattern:N",
                "streams:Q",
                alt.Tooltip("user:Q", format=".4g"),
                alt.Tooltip("gpu:Q", format=".4g"),
            ],
            **_backends(rows, word),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def streams(cells: Rows, word: Words) -> Figure | None:
    """TPOT against concurrency."""
    rows = [row for row in cells if row["counts"] and row.get("tpot_mean")]
    if len({row["streams"] for row in rows}) < 2:
        return None
    return (
        alt.Chart(_data(rows))
        .mark_point(size=50, filled=True)
        .encode(
            x=alt.X("streams:O", title=word("concurrency")),
            y=alt.Y("tpot_mean:Q", title=f"{word('tpot')} (ms)", scale=alt.Scale(zero=False)),
            href="link:N",
            tooltip=["pattern:N", alt.Tooltip("tpot_mean:Q", format=".4g")],
            **_backends(rows, word),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def transfer(costs: Rows, word: Words) -> Figure | None:
    """What is left of the TTFT after prefill, against the tokens that are transferred, with the fit."""
    rows = [{"backend": one["backend"], "tokens": x, "rest": y} for one in costs for x, y in one["points"]]
    if not rows:
        return None
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("tokens:Q", title=word("prompt tokens")),
        y=alt.Y("rest:Q", title=word("TTFT after prefill (ms)")),
        color=_backends(rows, word)["color"],
    )
    fit = base.transform_regression("tokens", "rest", groupby=["backend"]).mark_line(opacity=0.6)
    dots = base.mark_point(size=50, filled=True).encode(shape=_backends(rows, word)["shape"])
    return alt.layer(fit, dots).properties(width=WIDTH, height=HEIGHT)


def in_time(requests: Rows, first: str, word: Words) -> Figure | None:
    """The requests of one pattern in order of time, and their distribution for each start."""
    if not requests:
        return None
    names = sorted({str(row["pattern"]) for row in requests})
    chosen = alt.param(
        name="chosen",
        value=first or names[0],
        bind=alt.binding_select(options=names, name=word("pattern") + " "),
    )
    base = alt.Chart(_data(requests)).transform_filter("datum.pattern == chosen")
    color = alt.Color("start:N", title=word("start"), scale=alt.Scale(range=PALETTE))
    y = alt.Y("ttft:Q", title=f"{word('ttft')} (ms)", scale=alt.Scale(zero=False))
    order = base.mark_point(size=30, filled=True).encode(
        x=alt.X("n:Q", title=word("request")), y=y, color=color
    )
    steps = (
        base.transform_window(
            rank="rank()",
            total="count()",
            groupby=["start"],
            sort=[alt.SortField("ttft")],
            frame=[None, None],
        )
        .transform_calculate(share="datum.rank / datum.total")
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("ttft:Q", title=f"{word('ttft')} (ms)", scale=alt.Scale(zero=False)),
            y=alt.Y("share:Q", title=word("share of requests")),
            color=color,
        )
    )
    size = {"width": WIDTH, "height": HEIGHT}
    return alt.hconcat(order.properties(**size), steps.properties(**size)).add_params(chosen)


def timeline(rows: Rows, word: Words) -> Figure | None:
    """When each start was measured."""
    if not rows:
        return None
    return (
        alt.Chart(_data(rows))
        .mark_bar(height=9)
        .encode(
            x=alt.X("from:Q", title=word("minutes")),
            x2="to:Q",
            y=alt.Y("start:O", title=word("start")),
            color=_backends(rows, word)["color"],
            opacity=alt.condition("datum.counts", alt.value(1.0), alt.value(0.35)),
            href="link:N",
            tooltip=["pattern:N", "block:Q", "from:Q", "to:Q", "counts:N"],
        )
        .properties(width=2 * WIDTH, height=alt.Step(14))
    )

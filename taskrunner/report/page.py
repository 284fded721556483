"""The page itself: one file, with its figures' specifications and the library that draws them inside."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import vl_convert
from markupsafe import Markup

from taskrunner._version import __version__
from taskrunner.analysis.load import Sweep
from taskrunner.analysis.text import layer
from taskrunner.report import figures, rows
from taskrunner.report.words import words

TEMPLATE = "page.html.jinja"
SCRIPT = "window.vegaEmbed = vegaEmbed;"
CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {
        "gridColor": figures.GREY,
        "gridOpacity": 0.2,
        "domainColor": figures.GREY,
        "tickColor": figures.GREY,
        "labelFontSize": 11,
        "titleFontSize": 12,
    },
    "legend": {"labelFontSize": 11, "titleFontSize": 12},
    "view": {"stroke": None},
}


class Page(NamedTuple):
    """The page as HTML, its figures by name as Vega-Lite, and the rows of its table."""

    html: str
    figures: dict[str, Any]
    cells: list[dict[str, Any]]


def _draw(
    sweep: Sweep, document: Mapping[str, Any], cells: list[dict[str, Any]], language: str
) -> dict[str, Any]:
    """The figures; those for which there is nothing are left out."""
    word = words(language)
    gpus = _gpus(sweep)
    bimodal = [one["pattern"] for one in document["modes"]]
    charts = {
        "ratios": figures.forest(document["comparisons"], word),
        "ttft": figures.lengths(cells, "ttft", word),
        "tpot": figures.lengths(cells, "tpot", word),
        "streams": figures.streams(cells, word),
        "pareto": figures.pareto(cells, gpus, word),
        "transfer": figures.transfer(document["transfer_cost"], word),
        "requests": figures.in_time(rows.requests(sweep), bimodal[0] if bimodal else "", word),
        "timeline": figures.timeline(rows.timeline(sweep), word),
    }
    return {name: chart.configure(**CONFIG).to_dict() for name, chart in charts.items() if chart is not None}


def _gpus(sweep: Sweep) -> dict[str, int]:
    """GPUs that serve each backend."""
    each = int(float(sweep.schedule.get("gpu_count") or 1))
    return {one.backend: each * (2 if one.mode == "disaggregated" else 1) for one in sweep.measurements}


def page(sweep: Sweep, document: Mapping[str, Any], language: str = "en", renewed: bool = False) -> Page:
    """The page of an analysis; `renewed`: it loads itself again, while the sweep runs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cells = rows.cells(sweep)
    specs = _draw(sweep, document, cells, language)
    html = environment.get_template(TEMPLATE).render(
        _=words(language),
        language=language,
        version=__version__,
        title=f"{sweep.schedule.get('title') or sweep.name}",
        sweep=sweep,
        analysis=document,
        layer=layer,
        cells=cells,
        starts=list(rows.starts(sweep)),
        specs=specs,
        specs_json=_json(specs),
        library=_library(),
        renewed=renewed,
    )
    return Page(html, specs, cells)


def _json(value: Any) -> Markup:
    """JSON inside a script element: no markup is in it."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))  # noqa: S704 - nothing in it can end the element


def _library() -> Markup:
    """The bundle of Vega-Embed, as the content of a script element."""
    return Markup(re.sub("</(script)", r"<\\/\1", vl_convert.javascript_bundle(SCRIPT), flags=re.IGNORECASE))  # noqa: S704

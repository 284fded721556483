"""`taskrunner report`: one page of a sweep's results, its figures and its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskrunner.cli.commands.analyze import needs_extra
from taskrunner.inference.output import write

if TYPE_CHECKING:
    from taskrunner.cli import typed


def report(args: typed.Report) -> int:
    """Write the page, or serve it; figures and table where that is asked for."""
    with needs_extra():
        from taskrunner.report import export, rows, serve

        if args.serve is not None:
            serve.serve(
                Path(args.results),
                lambda: _made(args, renewed=True)[0],
                "127.0.0.1",
                args.serve,
                lambda url: print(f"report on {url}", flush=True),
            )
            return 0
        text, sweep, specs = _made(args)
    written = [Path(args.output)]
    write(args.output, text.rstrip("\n"))
    if args.figures:
        folder = Path(args.figures)
        written += [*export.figures(specs, folder), *export.table(rows.cells(sweep), folder)]
    if args.json:
        print(json.dumps({"written": list(map(str, written))}))
    else:
        print("\n".join(f"{path}" for path in written), file=sys.stdout)
    return 0


def _made(args: typed.Report, renewed: bool = False) -> tuple[str, Any, dict[str, Any]]:
    from taskrunner.analysis.analysis import analysis
    from taskrunner.analysis.load import load
    from taskrunner.report.page import draw, page

    sweep = load(args.results, args.doubtful)
    document = analysis(sweep)
    specs = draw(sweep, document, args.lang) if args.figures else {}
    return page(sweep, document, args.lang, renewed), sweep, specs

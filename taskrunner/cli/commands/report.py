"""`taskrunner report`: one page of a sweep's results, its figures and its table."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskrunner.cli.commands.analyze import needs_extra
from taskrunner.errors import UsageError
from taskrunner.inference.output import write

if TYPE_CHECKING:
    from taskrunner.analysis.load import Sweep
    from taskrunner.cli import typed
    from taskrunner.report.page import Page


def report(args: typed.Report) -> int:
    """Write the page, or serve it; figures and table where that is asked for."""
    try:
        return _report(args)
    except OSError as error:
        raise UsageError(f"{error.filename or f'port {args.serve}'}: {error.strerror}") from error


def _report(args: typed.Report) -> int:
    with needs_extra():
        from taskrunner.report import export, serve

        if args.serve is not None:
            serve.serve(
                Path(args.results),
                lambda: _made(args, renewed=True)[0].html,
                "127.0.0.1",
                args.serve,
                lambda url: print(f"report on {url}", flush=True),
            )
            return 0
        page, sweep, document = _made(args)
    if Path(args.output).is_dir():
        raise UsageError(f"{args.output} is a folder", "give a file: -o report.html")
    written = [Path(args.output)]
    write(args.output, page.html.rstrip("\n"))
    if args.figures:
        folder = Path(args.figures)
        written += [*export.figures(page.figures, folder), *export.table(page.cells, folder)]
    if args.mlflow:
        run = _log(args, sweep, document)
        if not args.json:
            print(f"{sweep.name}: run {run}", file=sys.stderr)
    if args.json:
        print(json.dumps({"written": list(map(str, written))}))
    else:
        print("\n".join(map(str, written)))
    return 0


def _log(args: typed.Report, sweep: Sweep, document: dict[str, Any]) -> str:
    """Send the page and the verdicts to MLflow; the run's id."""
    from taskrunner.tracking import spool, store
    from taskrunner.tracking.verdicts import record_of_analysis

    store.ready()
    times = [
        one.record["metadata"].get(name) or 0.0 for one in sweep.measurements for name in ("began", "ended")
    ]
    experiment = str(sweep.schedule.get("mlflow_experiment") or "")
    record = record_of_analysis(document, (min(times), max(times)), experiment)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(args.output, Path(folder) / "report.html")
        (Path(folder) / "analysis.json").write_text(json.dumps(document, indent=1))
        return spool.send(record, store.uri(), Path(folder))


def _made(args: typed.Report, renewed: bool = False) -> tuple[Page, Sweep, dict[str, Any]]:
    from taskrunner.analysis.analysis import analysis
    from taskrunner.analysis.load import load
    from taskrunner.report.page import page

    sweep = load(args.results, args.doubtful)
    document = analysis(sweep)
    return page(sweep, document, args.lang, renewed), sweep, document

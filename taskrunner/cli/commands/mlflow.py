"""`taskrunner mlflow log|sync|url|test`: results to MLflow, and whether that works."""

from __future__ import annotations

import json
import sys

from taskrunner.cli import typed
from taskrunner.tracking import connectivity, spool, store
from taskrunner.tracking.url import browser

UNREACHABLE = 3


def log(args: typed.Log) -> int:
    """Results are kept first; that they cannot be sent now is no failure of theirs."""
    store.ready()
    to = store.uri(args.to)
    for file in args.files:
        for sent in spool.sync(
            spool.spool(file, to, args.experiment, args.artifact, wished=store.named(args.to) != "")
        ):
            _show(args, sent)
    return 0


def sync(args: typed.Json) -> int:
    """Send what is kept here."""
    store.ready()
    done = spool.sync(each=lambda sent: _show(args, sent))
    if not done and not args.json:
        print("nothing is waiting to be sent", file=sys.stderr)
    return UNREACHABLE if any(sent.problem for sent in done) else 0


def _show(args: typed.Json, sent: spool.Sent) -> None:
    if args.json:
        print(json.dumps(sent._asdict()), flush=True)
    elif sent.problem:
        print(f"{sent.name}: kept here, not sent: {sent.problem}", file=sys.stderr)
        print("  `taskrunner mlflow sync` sends it later", file=sys.stderr)
    else:
        print(f"{sent.name}: run {sent.run}")


def url(args: typed.Tracking) -> int:
    """Print where a browser finds the results."""
    print(browser(store.uri(args.to)))
    return 0


def test(args: typed.TrackingTest) -> int:
    """Try each step that logging needs."""
    store.ready()
    return 0 if connectivity.check(store.uri(args.to), args.json) else 1

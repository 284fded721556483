"""`taskrunner mlflow log|sync|url|test`: results to MLflow, and whether that works."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from taskrunner.errors import UsageError
from taskrunner.tracking import connectivity, spool, store, url

UNREACHABLE = 3


def mlflow(args: Namespace) -> int:
    """One of its actions."""
    if args.files and args.action != "log":
        raise UsageError(f"mlflow {args.action} takes no FILE")
    return {"log": _log, "sync": _sync, "url": _url, "test": _test}[args.action](args)


def _log(args: Namespace) -> int:
    """Results are kept first; that they cannot be sent now is no failure of theirs."""
    if not args.files:
        raise UsageError("mlflow log: which result?", "taskrunner mlflow log results/*.json")
    store.ready()
    to = store.uri(args.to)
    for file in args.files:
        for sent in spool.sync(
            spool.spool(file, to, args.experiment, args.artifact, wished=store.named(args.to) != "")
        ):
            _show(args, sent)
    return 0


def _sync(args: Namespace) -> int:
    store.ready()
    done = spool.sync(told=lambda sent: _show(args, sent))
    if not done and not args.json:
        print("nothing is waiting to be sent", file=sys.stderr)
    return UNREACHABLE if any(sent.problem for sent in done) else 0


def _show(args: Namespace, sent: spool.Sent) -> None:
    if args.json:
        print(json.dumps(sent._asdict()), flush=True)
    elif sent.problem:
        print(f"{sent.name}: kept here, not sent: {sent.problem}", file=sys.stderr)
        print("  `taskrunner mlflow sync` sends it later", file=sys.stderr)
    else:
        print(f"{sent.name}: run {sent.run}")


def _url(args: Namespace) -> int:
    print(url.browser(store.uri(args.to)))
    return 0


def _test(args: Namespace) -> int:
    store.ready()
    return 0 if connectivity.check(store.uri(args.to), args.json) else 1

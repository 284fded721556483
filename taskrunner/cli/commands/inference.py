"""`proxy`, `bench`, `sample` and `tune`: the same as on nodes, with what they need installed here."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from taskrunner.cli import typed
from taskrunner.errors import NotFoundError, UsageError
from taskrunner.inference.tools.text import table

NEEDED = ("httptools", "numpy", "prometheus_client", "uvloop")


def proxy(args: Namespace) -> int:
    """Serve, until Ctrl-C or SIGTERM."""
    from taskrunner.inference.proxy.main import main

    _check()
    return main(args)


def bench(args: Namespace) -> int:
    """Measure a server."""
    from taskrunner.inference.bench.main import main

    _check()
    return main(args)


def sample(args: Namespace) -> int:
    """Sample this machine, until Ctrl-C or SIGTERM."""
    from taskrunner.inference.circumstances.main import main

    return main(args)


def tune(args: Namespace) -> int:
    """Try settings of a fabric."""
    from taskrunner.inference.tune.main import main

    return main(args)


def parse(args: typed.Parse) -> int:
    """Print the figures of a tool; 1 when there are none that can be trusted."""
    from taskrunner.inference.tools.reading import NotAResult
    from taskrunner.inference.tools.registry import parser

    try:
        data = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    except OSError as error:
        raise NotFoundError(f"{args.file}: {error.strerror}") from error
    try:
        record = parser(args.tool)(data.decode("utf-8", "replace"))
    except NotAResult as error:
        where = "stdin" if args.file == "-" else args.file
        print(f"{where}: no result of {args.tool}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(record, indent=2) if args.json else "\n".join(table(record)))
    return 0


def import_(args: Namespace) -> int:
    """Read a result of another client."""
    from taskrunner.inference.bench.main import import_

    _check()
    return import_(args)


def _check() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}", "pip install 'taskrunner[bench]'")

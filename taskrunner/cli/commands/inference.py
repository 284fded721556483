"""`proxy`, `bench`, `sample` and `tune`: the same as on nodes, with what they need installed here."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec

from taskrunner.errors import UsageError

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


def import_(args: Namespace) -> int:
    """Read a result of another client."""
    from taskrunner.inference.bench.main import import_

    _check()
    return import_(args)


def _check() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}", "pip install 'taskrunner[bench]'")

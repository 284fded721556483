"""Exit 0 when every package that lock files pin is installed at that version; nothing is imported."""

import importlib.metadata
import re
import sys

PIN = re.compile(r"([\w.-]+)==([^\s;]+)")


def main(paths):
    """Print what differs from the locks; returns the exit status."""
    bad = []
    for path in paths:
        with open(path) as file:
            pins = [pin.groups() for pin in map(PIN.match, file) if pin]
        for name, wanted in pins:
            try:
                installed = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                installed = None
            if installed != wanted:
                bad.append("%s: %s is wanted, %s is there" % (name, wanted, installed or "nothing"))
    print("\n".join(bad) or "all as pinned")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

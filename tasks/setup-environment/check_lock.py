"""Exit 0 when every pinned line of a lock file is installed at that version; nothing is imported."""

import importlib.metadata
import sys


def main(path):
    """Print what differs from the lock; returns the exit status."""
    bad = []
    with open(path) as file:
        lines = file.read().splitlines()
    for line in lines:
        name, _, wanted = line.strip().partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found != wanted:
            bad.append("%s: %s is wanted, %s is there" % (name, wanted, found or "nothing"))
    print("\n".join(bad) or "all as pinned")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

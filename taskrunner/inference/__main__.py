"""On a node: `python "$TASKRUNNER_LIB/inference" proxy|bench ...`, with the Python of vLLM's environment."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[0] = folder
    from inference.node import main  # type: ignore[import-not-found]

    # What lies beside this package has names that others may use, too.
    sys.path.remove(folder)
    sys.exit(main(sys.argv[1:]))

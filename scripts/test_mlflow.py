#!/usr/bin/env python3
"""Whether MLflow can be used from here, in eight steps: scripts/test_mlflow.py [ARN or URI].

Without an argument: MLFLOW_TRACKING_ARN, MLFLOW_TRACKING_URI, else the database on this machine. The same as
`taskrunner mlflow test`.
"""

import sys

from taskrunner.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["mlflow", "test", *(["--to", sys.argv[1]] if len(sys.argv) > 1 else [])]))

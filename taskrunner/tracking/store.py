"""Where results go: a SageMaker MLflow server by its ARN, an MLflow server, or a database on this machine."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import Any

from taskrunner.engine.run.masking import without_passwords
from taskrunner.engine.store import fileio, paths
from taskrunner.errors import UsageError

ARN = re.compile(r"arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(tracking-server|app)/\S+")
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's own patience is half an hour a request; what is not sent now is sent later."""


def uri(given: str = "") -> str:
    """The tracking URI: what is given, else MLFLOW_TRACKING_ARN, MLFLOW_TRACKING_URI, else the database here.

    Raises UsageError.
    """
    wanted = named(given)
    if not wanted:
        return f"sqlite:///{folder()}/mlflow.db"
    if wanted.startswith("arn:"):
        if not ARN.fullmatch(wanted):
            raise UsageError(
                f"{wanted} is not the ARN of an MLflow server",
                "expected arn:aws:sagemaker:REGION:ACCOUNT:mlflow-tracking-server/NAME or mlflow-app/ID",
            )
        if find_spec("sagemaker_mlflow") is None:
            raise UsageError(
                "an ARN requires the package sagemaker-mlflow", "pip install 'taskrunner[mlflow]'"
            )
    elif "://" not in wanted:
        raise UsageError(
            f"{without_passwords(wanted)} is not a tracking URI",
            "expected an ARN, http://HOST:PORT or sqlite:////PATH",
        )
    return wanted


def named(given: str) -> str:
    """The tracking URI that somebody has named, "" for none."""
    return given or os.environ.get("MLFLOW_TRACKING_ARN", "") or os.environ.get("MLFLOW_TRACKING_URI", "")


def folder() -> str:
    """What this machine keeps of its results."""
    path = os.path.join(paths.default_root(), "tracking")
    fileio.private_folder(path)
    return path


def client(to: str) -> Any:
    """A client of MLflow."""
    import mlflow

    # What signs for SageMaker looks at the tracking URI of the process.
    mlflow.set_tracking_uri(to)
    return mlflow.MlflowClient()


def short(error: Exception) -> str:
    """What an error says, in one line."""
    return without_passwords(" ".join(str(error).split()))[:300] or type(error).__name__


def ready() -> None:
    """See to it that MLflow is there, and does not wait for ever. Raises UsageError."""
    if find_spec("mlflow") is None:
        raise UsageError("this requires the package mlflow", "pip install 'taskrunner[mlflow]'")
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its plugins warn of servers that are not theirs; what goes wrong is an exception, too.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

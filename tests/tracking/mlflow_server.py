"""A real MLflow server on loopback."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers import wait_for
from tests.sshd import free_port


class Server:
    """An MLflow server that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,  # it outlives a test
                env={
                    **os.environ,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "TASKRUNNER_HOME": str(self.folder),
                },
            )
        wait_for(self.up, 90, "the start of MLflow")

    def up(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def runs(self, experiment: str = "nixl-efa") -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.url)
        known = client.get_experiment_by_name(experiment)
        return list(client.search_runs([known.experiment_id])) if known else []

"""AWS as far as it can be had here: moto for S3, EC2, STS; Run Command by a double that executes.

`make` gives both behind one address, with credentials and endpoints in the environment.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from tests.aws.agent import Instance
from tests.aws.front import KEY, SECRET, Front
from tests.aws.ssm import FakeSSM

REGION = "us-east-1"
ONE = "i-0123456789abcdef0"


class Aws:
    """The service, an instance or more, and the address of it all."""

    def __init__(self, folder: Path, moto: tuple[str, int]) -> None:
        self.folder = folder
        self.ssm = FakeSSM(folder, REGION)
        self.front = Front(self.ssm, moto)
        self.user = "root" if os.geteuid() == 0 else os.environ.get("USER", "")

    def env(self) -> dict[str, str]:
        """What tells clients of it."""
        return {
            "AWS_ENDPOINT_URL": self.front.url,
            "AWS_ENDPOINT_URL_SSM": self.front.url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "credentials"),
        }

    def add(self, id: str = ONE, **about: Any) -> Instance:
        """An instance whose user has a home of its own."""
        home = self.folder / f"home of {id}"
        home.mkdir(parents=True)
        about["env"] = {"HOME": str(home), **about.get("env", {})}
        return self.ssm.add(id, **about)

    def state(self, id: str = ONE) -> Path:
        """The state root there."""
        return self.ssm.instances[id].state

    def target(self, id: str = ONE, **query: str) -> str:
        more = "&".join(f"{name}={value}" for name, value in query.items())
        return f"ssm://{self.user}@{id}" + (f"?{more}" if more else "")

    def bucket(self, name: str = "results") -> str:
        """A bucket that is there."""
        import boto3

        boto3.client("s3", endpoint_url=self.front.url).create_bucket(Bucket=name)
        self.front.calls.clear()
        return name

    def objects(self, name: str = "results") -> list[str]:
        import boto3

        found = boto3.client("s3", endpoint_url=self.front.url).list_objects_v2(Bucket=name)
        return [entry["Key"] for entry in found.get("Contents", ())]

    def slow(self) -> None:
        """The delays of the real one, as far as they are known."""
        self.front.delay, self.ssm.visibility, self.ssm.delivery = 0.3, 0.8, 1.0

    def close(self) -> None:
        self.ssm.close()
        self.front.close()


def moto() -> Any:
    """moto's server; `stop` ends it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    return server

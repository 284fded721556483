"""Run Command: the same steps by one SendCommand of boto3 and its waiter, and a log by S3.

No account is needed: the service is the double of tests/aws, with the delays of the real one, and moto.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.aws import ONE, Aws, moto

TASKRUNNER = str(Path(sys.executable).parent / "taskrunner")
STEPS = 20
LOG = 200_000_000
ROUNDS = 3

SEND = """
import boto3, sys
ssm = boto3.client("ssm")
sent = ssm.send_command(InstanceIds=[sys.argv[1]], DocumentName="AWS-RunShellScript",
                        Parameters={"commands": ["#!/bin/bash", *sys.argv[2:]]})["Command"]["CommandId"]
ssm.get_waiter("command_executed").wait(CommandId=sent, InstanceId=sys.argv[1])
print(ssm.get_command_invocation(CommandId=sent, InstanceId=sys.argv[1])["StandardOutputContent"])
"""
FETCH = """
import boto3, subprocess, sys
s3 = boto3.client("s3", config=boto3.session.Config(signature_version="s3v4"))
url = s3.generate_presigned_url("put_object", {"Bucket": "results", "Key": "log"})
subprocess.run(["curl", "-sf", "-T", sys.argv[1], url], check=True)
s3.download_file("results", "log", sys.argv[2])
"""


def ssm(folder: Path) -> None:
    """20 no-op steps, and 200 MB of output."""
    server = moto()
    cloud = Aws(folder / "aws", server.get_host_and_port())
    env = {**os.environ, **cloud.env(), "TASKRUNNER_HOME": str(folder / "state")}
    os.environ.update(cloud.env())
    try:
        cloud.add()
        cloud.bucket("results")
        cloud.slow()
        _steps(cloud, folder, env)
        _log(cloud, folder, env)
    finally:
        cloud.close()
        server.stop()


def _steps(cloud: Aws, folder: Path, env: dict[str, str]) -> None:
    path = folder / "steps.json"
    tasks = [{"id": f"s{n}", "skip_if": "false", "commands": ["true"]} for n in range(STEPS)]
    path.write_text(json.dumps({"name": "Steps", "tasks": tasks}))
    script = ["bash -c false || bash -c true"] * STEPS
    ours, theirs = _in_turns(
        [TASKRUNNER, str(path), "--on", cloud.target()], [sys.executable, "-c", SEND, ONE, *script], env
    )
    print("| 20 guarded no-op steps by Run Command | s | taskrunner / it | target |\n|---|---|---|---|")
    print(f"| taskrunner --on ssm://... | {ours:.2f} | 1 | under 8 s |")
    print(f"| boto3, one SendCommand with all, its waiter | {theirs:.2f} | {ours / theirs:.3g} | |\n")


def _log(cloud: Aws, folder: Path, env: dict[str, str]) -> None:
    big = folder / "big.log"
    line = b"%06d INFO request completed: ttft=0.123 tpot=0.0123 tokens=1024 throughput=4711\n"
    with big.open("wb") as file:
        while file.tell() < LOG:
            file.write(b"".join(line % number for number in range(20_000)))
    path = folder / "log.json"
    tasks = [{"id": "a", "skip_if": "false", "commands": [f"cat {big}"]}]
    path.write_text(json.dumps({"name": "Log", "tasks": tasks}))
    ours, theirs = _in_turns(
        [TASKRUNNER, str(path), "--on", cloud.target(bucket="results"), "-v"],
        [sys.executable, "-c", FETCH, str(big), str(folder / "theirs")],
        env,
    )
    print("| 200 MB of output through S3 | s | MB/s | speed against it | target |\n|---|---|---|---|---|")
    print(
        f"| taskrunner -v, from the step's print to here | {ours:.2f} | {LOG / ours / 1e6:.0f} | 1 | at least 20 MB/s |"
    )
    print(
        f"| curl -T URL, boto3 download_file: no delay of Run Command | {theirs:.2f} | {LOG / theirs / 1e6:.0f} | {theirs / ours:.2g} | |\n"
    )


def _in_turns(ours: list[str], theirs: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Median wall times of whole processes, in seconds; one uncounted round first."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for argv, found in zip((ours, theirs), times, strict=True):
            began = time.perf_counter()
            subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)
            if number:
                found.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])

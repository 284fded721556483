"""Run Command when something goes wrong: instances, credentials, buckets, limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import run, start
from taskrunner.errors import NeverRanError, TargetError
from taskrunner.runs import Run, launch
from taskrunner.transports import connect
from tests.aws import ONE, Aws
from tests.helpers import Process

Write = Callable[..., Path]
Cli = Callable[..., Process]


def test_cancel_before_it_is_delivered(cloud: Aws, write: Write) -> None:
    from taskrunner import compile

    instance = cloud.ssm.instances[ONE]
    run(write({"id": "a", "commands": ["true"]}), on=cloud.target())
    instance.ping = "ConnectionLost"
    ledger = cloud.folder / "ledger"
    transport = connect(cloud.target())
    plan = compile(write({"id": "a", "commands": [f"echo x >> '{ledger}'"]}), on=transport)
    asked: list[Run] = []

    def idle(begun: Run) -> None:
        if not asked:
            asked.append(begun)
            time.sleep(0.3)
            begun.cancel()

    with pytest.raises(NeverRanError):
        launch(plan, transport, idle=idle)
    cloud.ssm.reconnect(ONE)
    time.sleep(0.5)
    assert not ledger.exists()


def test_cancel_while_it_runs(cloud: Aws, write: Write) -> None:
    with start(write({"id": "a", "commands": ["exec sleep 60"]}), on=cloud.target()) as begun:
        threading.Timer(1.0, begun.cancel).start()
        result = begun.result()
    assert (result.status, result.exit) == ("cancelled", 130)
    assert begun.cancel() is False


def test_the_instance_restarts_in_the_middle(cloud: Aws, write: Write) -> None:
    path = write(
        {"id": "a", "commands": ["true"]},
        {"id": "b", "commands": ["sleep 1; [ -e on ] || { touch on; sleep 60; }"]},
    )
    with start(path, on=cloud.target()) as begun:
        threading.Timer(3.0, cloud.ssm.reboot, [ONE]).start()
        with pytest.raises(Exception, match="was interrupted"):
            begun.result()
    result = run(path, on=cloud.target())
    assert (result.status, result.skipped) == ("ok", 1)


def test_the_agent_restarts(cloud: Aws, write: Write) -> None:
    with start(write({"id": "a", "commands": ["sleep 2; echo done"]}), on=cloud.target()) as begun:
        cloud.ssm.instances[ONE].down_until = time.time() + 5
        assert begun.result().ok == 1


def test_calls_that_fail_now_and_then(cloud: Aws, write: Write) -> None:
    """With 500, or with a reset after they were accepted: nothing runs twice, nothing is lost."""
    cloud.front.fail = 0.15
    ledger = cloud.folder / "ledger"
    path = write({"id": "a", "commands": [f"echo x >> '{ledger}'", "seq 1000"]})
    for number in range(1, 5):
        with start(path, on=cloud.target(), reset=True) as begun:
            text = "".join(event["text"] for event in begun.events(output=True) if event["type"] == "output")
        assert text == "".join(f"{n}\n" for n in range(1, 1001))
        assert ledger.read_text() == "x\n" * number


def test_errors_are_one_line_with_a_fix(
    cloud: Aws, write: Write, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write({"id": "a", "commands": ["true"]})

    def said(*more: object) -> str:
        done = cli(path, "--on", cloud.target(), *more)
        assert done.returncode in (2, 3), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    cloud.front.denied.add("ssm:SendCommand")
    assert "AWS denies ssm:SendCommand" in said()
    cloud.front.denied.clear()
    cloud.front.expired = True
    assert "the AWS credentials have expired" in said()
    cloud.front.expired = False
    assert "no such bucket" in said("--bucket", "none-of-ours")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "no AWS region given" in said()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no AWS credentials found" in said("--region", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cloud.env()["AWS_ACCESS_KEY_ID"])
    with pytest.raises(TargetError, match="Run Command rejected it"):
        run(path, on=connect(cloud.target("i-00000000"), region="us-east-1"))
    assert "is not an instance id" in cli(path, "--on", "ssm://web-1").stderr


def test_credentials_that_expire_in_the_middle(cloud: Aws, write: Write) -> None:
    with start(write({"id": "a", "commands": ["sleep 4; echo on"]}), on=cloud.target()) as begun:
        threading.Timer(1.0, setattr, [cloud.front, "expired", True]).start()
        threading.Timer(9.0, setattr, [cloud.front, "expired", False]).start()
        events = list(begun.events())
    told = [(event["state"], event["detail"]) for event in events if event["type"] == "connection"]
    assert [state for state, _ in told] == ["lost", "back"]
    assert "credentials have expired" in told[0][1]
    assert events[-1]["status"] == "ok"  # type: ignore[typeddict-item]


def test_an_instance_that_vanishes(cloud: Aws, write: Write) -> None:
    transport = connect(cloud.target(), reconnect_timeout=4.0)
    with start(write({"id": "a", "commands": ["sleep 1; echo a; sleep 60"]}), on=transport) as begun:

        def vanish() -> None:
            instance = cloud.ssm.instances[ONE]
            instance.registered = False
            cloud.ssm.reboot(ONE)

        threading.Timer(3.0, vanish).start()
        with pytest.raises(TargetError, match="lost, and not reconnected within 4 s"):
            begun.result()


def test_a_bucket_elsewhere_and_one_that_is_denied(cloud: Aws, write: Write) -> None:
    path = write({"id": "a", "commands": ["seq 200000"]})
    cloud.bucket("far")
    cloud.front.regions["far"] = "eu-west-1"
    assert run(path, on=connect(cloud.target(), bucket="far")).ok == 1
    cloud.front.denied.add("s3:PutObject")
    with pytest.raises(TargetError, match="bucket far: AWS denies s3:PutObject"):
        run(path, on=connect(cloud.target(), bucket="far/other"), reset=True)


def test_urls_that_have_expired(cloud: Aws, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the node cannot upload comes through the commands, and that is said."""
    bucket = cloud.bucket()
    path = write({"id": "a", "commands": ["sleep 1; seq 200000"]})
    run(
        write({"id": "b", "commands": ["true"]}, file="work/first.json"),
        on=connect(cloud.target(), bucket=bucket),
    )
    with start(path, on=connect(cloud.target(), bucket=bucket)) as begun:
        cloud.ssm.ahead = 7200.0
        events = list(begun.events(output=True))
    text = "".join(event["text"] for event in events if event["type"] == "output")
    assert text == "".join(f"{number}\n" for number in range(1, 200_001))


def test_throttled_to_one_request_a_second(cloud: Aws, write: Write) -> None:
    cloud.front.rate = 1.0
    path = write({"id": "a", "commands": ["echo one; sleep 3; echo two"]})
    with start(path, on=cloud.target()) as begun:
        text = "".join(event["text"] for event in begun.events(output=True) if event["type"] == "output")
    assert text == "one\ntwo\n"

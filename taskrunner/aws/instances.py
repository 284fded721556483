"""The instances of an account."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from taskrunner.aws.session import Account


def instances(account: Account, states: list[str], **filters: str) -> Iterator[dict[str, Any]]:
    """Those in these states, as DescribeInstances tells of them; `filters` are of its names, with a value.

    Raises what boto3 does.
    """
    wanted = [{"Name": "instance-state-name", "Values": states}]
    wanted += [{"Name": name, "Values": [value]} for name, value in filters.items()]
    for page in account.client("ec2").get_paginator("describe_instances").paginate(Filters=wanted):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]

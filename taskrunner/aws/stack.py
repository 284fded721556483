"""The nodes of a CloudFormation stack (cdk/ makes one): from its outputs, or from its instances' tags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from taskrunner.aws.instances import instances
from taskrunner.aws.session import Account, code_of, explained
from taskrunner.errors import NotFoundError, closest

OUTPUT = re.compile(r"Node([1-9][0-9]*)(Id|PrivateIp)")
TAG = "aws:cloudformation:stack-name"
"""CloudFormation puts it on every instance it makes."""
ALIVE = ["pending", "running", "stopping", "stopped"]


class Instance(NamedTuple):
    """A node of a stack: its instance, and its address for the others."""

    id: str
    private: str


class Stack(NamedTuple):
    """What a stack has made: nodes by name (node1, ...), and the bucket and MLflow they use ("": none)."""

    nodes: Mapping[str, Instance]
    bucket: str
    mlflow: str


def read(account: Account, name: str) -> Stack:
    """What a stack has made. Raises NotFoundError with the closest names, TargetError."""
    try:
        stack = account.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
    except Exception as error:
        if code_of(error) == "ValidationError" and "does not exist" in str(error):
            stacks = _names(account)
            hint = closest(name, stacks) or (
                f"existing stacks: {', '.join(stacks[:10])}" if stacks else "no stacks exist there"
            )
            raise NotFoundError(f"there is no stack {name} in {account.region}", hint) from error
        raise explained(error, name) from error
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", ())}
    nodes = _of_outputs(outputs) or _of_tags(account, name)
    if not nodes:
        raise NotFoundError(
            f"stack {name} has no nodes: no output NodeNId, no instance with its tag",
            "name the stack that has the nodes (...-nixl-efa-...), and deploy it first",
        )
    return Stack(nodes, outputs.get("ScriptsBucket", ""), outputs.get("MlflowArn", ""))


def _of_outputs(outputs: Mapping[str, str]) -> dict[str, Instance]:
    numbered: dict[int, dict[str, str]] = {}
    for key, value in outputs.items():
        if match := OUTPUT.fullmatch(key):
            numbered.setdefault(int(match[1]), {})[match[2]] = value
    return {
        f"node{number}": Instance(fields["Id"], fields.get("PrivateIp", ""))
        for number, fields in sorted(numbered.items())
        if "Id" in fields
    }


def _of_tags(account: Account, name: str) -> dict[str, Instance]:
    """The instances of a stack without outputs, in the order of their names."""
    try:
        members = list(instances(account, ALIVE, **{f"tag:{TAG}": name}))
    except Exception as error:
        raise explained(error, name) from error

    def title(instance: dict[str, Any]) -> tuple[list[int], str]:
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
        return [int(number) for number in re.findall(r"\d+", tags.get("Name", ""))], instance["InstanceId"]

    return {
        f"node{number}": Instance(told["InstanceId"], told.get("PrivateIpAddress", ""))
        for number, told in enumerate(sorted(members, key=title), 1)
    }


def _names(account: Account) -> list[str]:
    try:
        pages = account.client("cloudformation").get_paginator("describe_stacks").paginate()
        return [stack["StackName"] for page in pages for stack in page["Stacks"]]
    except Exception:
        return []  # what is wrong is said without them

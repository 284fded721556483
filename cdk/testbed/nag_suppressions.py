"""Accepted findings of cdk-nag, each with its reason."""

from __future__ import annotations

from typing import Any

from aws_cdk import Acknowledgment, Stack, Validations
from constructs import Construct


def accept(construct: Construct, reason: str, *rules: str) -> None:
    """Say why these rules of AwsSolutions do not hold for a construct: `IAM5[Resource::...]`."""
    Validations.of(construct).acknowledge(
        *(Acknowledgment(id=f"AwsSolutions::AwsSolutions-{rule}", reason=reason) for rule in rules)
    )


def below(stack: Stack, arn: Any, prefix: str) -> str:
    """The rule about `ARN/prefix/*` in a policy, as cdk-nag writes what is known at deployment only."""
    told = stack.resolve(arn)
    if "Fn::GetAtt" in told:
        named = "<{}>".format(".".join(told["Fn::GetAtt"]))
    else:
        named = told["Fn::ImportValue"]
    return f"IAM5[Resource::{named}/{prefix}/*]"

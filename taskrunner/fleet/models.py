"""What a nodes file is: `nodes.toml`, or the same as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from taskrunner.model.part import Part, json_schema
from taskrunner.transports.slurm import JOB

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
Value = str | int | float | bool
Variables = Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], Value], Field()]


class Defaults(Part):
    """Defaults of all nodes; a node's own value wins."""

    user: Line | None = Field(default=None, description="User name on the node")
    port: int | None = Field(default=None, ge=1, le=65535, description="Port of sshd (22)")
    python: Line | None = Field(default=None, description="The node's Python, 3.8 or later (python3)")
    state: Line | None = Field(
        default=None, description="Folder for taskrunner's state (default: in the user's home on the node)"
    )
    via: Literal["ssh", "ssm", "slurm"] | None = Field(
        default=None, description="How to reach a node that several ways lead to (ssh)"
    )
    job: Annotated[str, Field(pattern=f"^{JOB}$")] | None = Field(
        default=None, description="Slurm job that has the node, whose name is the address, for slurm"
    )
    region: Line | None = Field(default=None, description="AWS region, for ssm (default: the environment's)")
    profile: Line | None = Field(default=None, description="AWS profile of ~/.aws/config, for ssm")
    bucket: Line | None = Field(default=None, description="S3 bucket for large or secret data, for ssm")
    variables: Variables | None = Field(default=None, description="Values of variables, for runs on the node")


class NodeEntry(Defaults):
    """One node."""

    address: Line | None = Field(default=None, description="Name, IP address or alias in ~/.ssh/config")
    private: Line | None = Field(
        default=None, description="Its address for other nodes: NAME_PRIVATE in task files"
    )
    id: Line | None = Field(default=None, description="EC2 instance id: NAME_ID in task files")


class Group(Part):
    """A named group of nodes."""

    nodes: list[Name] = Field(description="Names of nodes")
    variables: Variables | None = Field(
        default=None, description="Values of variables, for runs on these nodes"
    )


class NodesFile(Part):
    """A nodes file."""

    schema_: str | None = Field(default=None, alias="$schema")
    defaults: Defaults | None = None
    nodes: dict[Name, NodeEntry]
    groups: dict[Name, Group] | None = None


def generate() -> dict[str, Any]:
    """The JSON Schema of a nodes file (draft 2020-12)."""
    return json_schema(NodesFile, "taskrunner nodes file")

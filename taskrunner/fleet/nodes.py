"""The nodes: from NODE1_IP and the like in the environment, and from a nodes file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskrunner.errors import NotFoundError, TargetError, TaskFileError, UsageError, closest, in_order
from taskrunner.fleet.toml import TomlDocument
from taskrunner.model.document import Document
from taskrunner.model.variables import text_of
from taskrunner.transports import Transport, connect
from taskrunner.transports.slurm import JOB

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from taskrunner.transports import ReachOptions

FILES = ("nodes.toml", "nodes.json")
FROM_ENVIRONMENT = re.compile(r"(NODE[1-9][0-9]*)_(IP|PRIVATE|USER|PORT|ID|PYTHON|STATE|VIA|REGION|JOB)")
WAYS: Mapping[str, tuple[str, ...]] = {"ssh": ("address",), "ssm": ("id",), "slurm": ("job", "address")}
"""What each way to a node needs to know of it."""
INSTANCE = re.compile(r"m?i-[0-9a-f]{8,17}")
"""An instance names itself."""
NUMBERED = re.compile(r"node[1-9][0-9]*")
FIELDS = {"IP": "address"}
KNOWN = ("address", "private", "id", "user", "port")
"""What every run is told of every node: NODE1_IP, NODE1_PRIVATE, ..."""
ALL = "all"


class Node(NamedTuple):
    """A machine to run on. `private` is its address for the other nodes, `id` that of the instance."""

    name: str
    address: str = ""
    user: str = ""
    port: int = 0
    private: str = ""
    id: str = ""
    python: str = "python3"
    state: str = ""
    via: str = ""
    job: str = ""
    region: str = ""
    profile: str = ""
    bucket: str = ""
    variables: Mapping[str, str] = {}

    @property
    def target(self) -> str:
        """Its URL: SSH to an address, Systems Manager to an id, a step of a Slurm job; `via` says which
        where there are several.

        Raises TargetError for a node without what that needs.
        """
        via = self.via or ("slurm" if self.job else "ssm" if self.id and not self.address else "ssh")
        for needed in WAYS[via]:
            if getattr(self, needed):
                continue
            known = [name for name in ("address", "id") if getattr(self, name)]
            there = f" (only the {known[0]})" if known else ""
            variable = f"{prefix(self.name)}_{'IP' if needed == 'address' else needed.upper()}"
            raise TargetError(
                f"{self.name}: no {needed} is known{there}",
                (f"set {variable}, or " if NUMBERED.fullmatch(self.name) else "give it an ")
                + f"`{needed}` in the nodes file",
            )
        if via == "slurm":
            return f"slurm://{self.job}/{self.address}"
        if via == "ssm":
            return f"ssm://{self.user}@{self.id}" if self.user else f"ssm://{self.id}"
        host = f"[{self.address}]" if ":" in self.address else self.address
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")

    def connect(self, **options: Unpack[ReachOptions]) -> Transport:
        """A transport to it; it is reached when that is first used."""
        own: ReachOptions = {"region": self.region, "profile": self.profile}
        if self.bucket:
            own["bucket"] = self.bucket
        own.update(options)
        return connect(self.target, **own, python=self.python, state=self.state)


class Nodes(NamedTuple):
    """All that is known: nodes by name, in order, and groups of their names."""

    nodes: Mapping[str, Node]
    groups: Mapping[str, tuple[str, ...]]

    def select(self, names: str | Iterable[str]) -> list[Node]:
        """The nodes of names and groups ("node1,decode", "all"), each once.

        Raises NotFoundError with the closest names.
        """
        wanted = names.split(",") if isinstance(names, str) else names
        selected: dict[str, Node] = {}
        for name in (name.strip() for name in wanted):
            if name in self.nodes:
                members: Iterable[str] = (name,)
            elif name in self.groups:
                members = self.groups[name]
            elif name == ALL and self.nodes:
                members = self.nodes
            elif INSTANCE.fullmatch(name):
                selected[name] = Node(name, id=name)
                continue
            else:
                what = f"unknown node or group {name!r}" if self.nodes else "no nodes are defined"
                raise NotFoundError(what, self._hint(name))
            selected.update((member, self.nodes[member]) for member in members)
        if not selected:
            raise NotFoundError(f"{names}: contains no nodes")
        return list(selected.values())

    def variables(self) -> dict[str, str]:
        """What task files may use of every node: NODE1_IP, NODE1_PRIVATE, NODE1_ID, ..."""
        variables = {}
        for node in self.nodes.values():
            for field in KNOWN:
                value = str(getattr(node, field) or "")
                if value:
                    variables[f"{prefix(node.name)}_{'IP' if field == 'address' else field.upper()}"] = value
        return variables

    def _hint(self, name: str) -> str:
        names = [*self.nodes, *self.groups]
        if not names:
            return "define nodes: NODE1_IP=... in the environment, or a nodes.toml here (--nodes FILE)"
        return closest(name, names) or "known: " + ", ".join(names[:20])


def prefix(name: str) -> str:
    """What a node's variables begin with: NODE1 for node1, PREFILL_A for prefill-a."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def load_nodes(file: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Nodes:
    """The nodes of the environment and of a file (default: nodes.toml or nodes.json here, if any).

    For a node that both know, the environment wins. Raises TaskFileError with every problem of the
    file, NotFoundError, UsageError.
    """
    if file is None:
        file = next((name for name in FILES if os.path.exists(name)), None)
    loaded = _read(Path(file)) if file is not None else Nodes({}, {})
    nodes = dict(loaded.nodes)
    for name, fields in sorted(_of_environment(environ).items(), key=lambda item: int(item[0][4:])):
        nodes[name] = nodes.get(name, Node(name))._replace(**fields)
    return Nodes(nodes, loaded.groups)


def tagged(target: str, region: str = "", profile: str = "") -> dict[str, Node]:
    """The instances that Systems Manager knows with a tag (`tag:NAME=VALUE`), as nodes by their ids.

    Raises UsageError, NotFoundError, TargetError.
    """
    try:
        from taskrunner.aws import session
        from taskrunner.transports.ssm.tagged import members
    except ModuleNotFoundError as error:
        raise UsageError("--target needs boto3", "pip install 'taskrunner[aws]'") from error
    instances = members(session.Account(region, profile), target)
    return {
        member.instance: Node(
            member.instance,
            id=member.instance,
            private=member.address,
            region=region,
            profile=profile,
            via="ssm",
        )
        for member in instances
    }


def of_stack(name: str, region: str = "", profile: str = "") -> Nodes:
    """The nodes that a CloudFormation stack has made, reached through Systems Manager, with its bucket.

    Raises UsageError, NotFoundError, TargetError.
    """
    try:
        from taskrunner.aws import stack
        from taskrunner.aws.session import Account
    except ModuleNotFoundError as error:
        raise UsageError("--stack needs boto3", "pip install 'taskrunner[aws]'") from error
    deployed = stack.read(Account(region, profile), name)
    variables = {"MLFLOW_TRACKING_ARN": deployed.mlflow} if deployed.mlflow else {}
    nodes = {
        node: Node(
            node,
            id=fields.id,
            private=fields.private,
            region=region,
            profile=profile,
            via="ssm",
            bucket=deployed.bucket,
            variables=variables,
        )
        for node, fields in deployed.nodes.items()
    }
    return Nodes(nodes, {})


def _of_environment(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    nodes: dict[str, dict[str, Any]] = {}
    for variable, value in environ.items():
        match = FROM_ENVIRONMENT.fullmatch(variable)
        if match is None or not value:
            continue
        field = FIELDS.get(match[2], match[2].lower())
        if re.search(r"[\x00-\x20]", value):
            raise UsageError(f"{variable}={value!r}: contains white space")
        if field == "via" and value not in WAYS:
            raise UsageError(f"{variable}={value}: expected {', '.join(WAYS)}")
        if field == "job" and not re.fullmatch(JOB, value):
            raise UsageError(f"{variable}={value}: expected the id of a Slurm job")
        if field == "port" and not (value.isdigit() and 0 < int(value) < 65536):
            raise UsageError(f"{variable}={value}: expected a port, 1 to 65535")
        nodes.setdefault(match[1].lower(), {})[field] = int(value) if field == "port" else value
    # An address for the other nodes alone names no node to run on.
    return {name: fields for name, fields in nodes.items() if "address" in fields or "id" in fields}


def _read(path: Path) -> Nodes:
    from taskrunner.model import schema

    kind = TomlDocument if path.suffix == ".toml" else Document
    document = kind.read(path)
    problems = schema.problems(document, "nodes")
    if problems:
        raise TaskFileError(problems)
    data = _without_comments(document.data)
    groups = data.get("groups", {})
    problems = [
        document.problem(
            ("groups", group, "nodes", index), f"unknown node {name!r}", closest(name, data["nodes"])
        )
        for group, entry in groups.items()
        for index, name in enumerate(entry["nodes"])
        if name not in data["nodes"]
    ]
    problems += [
        document.problem((kind, ALL), f"{ALL!r} means all nodes; choose another name", key=True)
        for kind in ("nodes", "groups")
        if ALL in data.get(kind, {})
    ]
    problems += [
        document.problem(("groups", name), f"{name!r} is already a node's name", key=True)
        for name in groups
        if name in data["nodes"]
    ]
    if problems:
        raise TaskFileError(in_order(problems))
    defaults = data.get("defaults", {})
    nodes = {}
    for name, entry in data["nodes"].items():
        fields = {**defaults, **entry}
        fields["variables"] = {
            variable: text_of(value)
            for source in (defaults, *(groups[g] for g in groups if name in groups[g]["nodes"]), entry)
            for variable, value in source.get("variables", {}).items()
        }
        nodes[name] = Node(name, **fields)
    return Nodes(nodes, {name: tuple(entry["nodes"]) for name, entry in groups.items()})


def _without_comments(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_comments(item) for name, item in value.items() if name[:1] not in ("_", "$")}

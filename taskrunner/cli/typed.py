"""What a handler is given: the groups of options.py as types, and the mix that each kind of command takes.

For mypy and for readers: argparse makes one Namespace for all. A test compares them with the parsers.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Literal, TypeVar, cast


class Json:
    json: bool


class Shown(Json):
    quiet: bool
    verbose: bool


class Account:
    region: str | None
    profile: str | None


class Target(Account):
    """A machine: `node` of `runner`, else `on`, else this one."""

    on: str | None
    node: str
    accept_new_host_keys: bool
    connect_timeout: float | None
    reconnect_timeout: float | None
    bucket: str | None
    stream: Literal["auto", "poll", "s3"] | None


class Nodes(Target):
    """Nodes by name, or by a tag or a stack; `nodes` is their file."""

    nodes: str
    via: Literal["ssh", "ssm", "slurm"] | None
    tag: str | None
    stack: str | None
    user: str | None


class Files(Json):
    files: list[str]


class Variables:
    env: list[str]
    env_file: list[str]


class Selection(Variables):
    start: str | None
    until: str | None
    only: list[str]
    reset: bool
    check: bool


class Compile(Selection):
    file: str


class Run(Selection, Target, Shown):
    file: str | None
    dry_run: bool
    list: bool
    detach: bool


class Parallel(Nodes, Shown):
    max_parallel: int
    serial: int
    fail_fast: bool


class RunOnNodes(Run, Parallel):
    pass


class OneRun(Target):
    run: str


class Show(OneRun, Json):
    pass


class Attach(OneRun, Shown):
    pass


class AttachOnNodes(Attach, Parallel):
    pass


class CancelOnNodes(OneRun, Nodes):
    pass


class Logs(OneRun):
    step: str | None
    follow: bool


class Status(Target, Json):
    pass


class History(Target, Json):
    count: int


class NodesJson(Nodes, Json):
    pass


class WaitReady(NodesJson):
    timeout: float


class Copy(Nodes):
    source: str
    target: str


class Shell(Nodes):
    command: list[str]


class PlanFiles(Json):
    plans: list[str]


class PlanArgs:
    plan: str
    names: list[str]
    warmup: int | None
    iterations: int | None
    blocks: int | None
    pilot: bool
    infra: list[str]


class PlanShow(PlanArgs, Json):
    pass


class PlanGenerate(PlanArgs):
    output: str
    count: int


class Experiment(PlanArgs, Shown):
    verb: str
    env: list[str]
    pairs: str
    rerun: bool
    only_failed: bool
    accept_mixed: bool
    mlflow: bool
    scheduler: str
    partition: str
    account: str
    time: str
    dry_run: bool
    detach: bool
    program: str


class Analyze(Json):
    results: str
    doubtful: bool
    against: str
    margin: str


class Report(Json):
    results: str
    doubtful: bool
    output: str
    lang: Literal["en", "ja"]
    figures: str
    mlflow: bool
    serve: int | None


class Schema:
    kind: Literal["task-file", "nodes", "plan", "result"]


class Completion:
    program: str
    shell: Literal["bash", "zsh", "tcsh"]


class Log(Json):
    files: list[str]
    to: str
    experiment: str
    artifact: list[str]


class Parse(Json):
    tool: str
    file: str


class Tracking:
    to: str


class TrackingTest(Tracking, Json):
    pass


class Preflight(Account, Json):
    instance_type: str
    count: int
    zone: str
    reserved: bool


T = TypeVar("T")


def changed(args: T, **values: Any) -> T:
    """The same arguments but for these."""
    return cast(T, Namespace(**{**vars(args), **values}))

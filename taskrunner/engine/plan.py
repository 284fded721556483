"""A plan as the engine runs it: JSON, with every template replaced. Times are in seconds.

Only type checkers import this module. Optional members are in classes of their own: Python 3.8 has no
NotRequired.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, TypedDict


class _Command(TypedDict):
    text: str
    source: str
    line: int


class Command(_Command, total=False):
    """A command: the `text` that bash runs, and the `source` that was written, with its place."""

    file: str


_Pair = TypedDict("_Pair", {"from": str, "to": str})


class FilePair(_Pair, total=False):
    """A file to copy. `name` and `content` are those that it has on the controller; of an output, `bring` is
    where the controller puts it, and `to` is on the node.
    """

    name: str
    content: str
    bring: str


class Skip(TypedDict, total=False):
    """Why a step is left out: decided when the plan was made."""

    reason: str
    detail: str


class Retries(TypedDict):
    """Attempts in all, the delay before the second, and the factor by which it grows."""

    attempts: int
    delay: float
    backoff: float


class LogPattern(TypedDict, total=False):
    """A regular expression, and the log to search: a path, or a service's."""

    pattern: str
    path: str
    service: str


class Probe(TypedDict, total=False):
    """A condition that is polled: one of http, tcp, listen, file and log."""

    http: str
    status: int
    tcp: str
    listen: Any
    file: str
    log: LogPattern
    timeout: float


class _Service(TypedDict):
    name: str
    env: Dict[str, str]
    ready: Probe
    stop_timeout: float
    definition: str


class Service(_Service, total=False):
    """A service; it is another one when its `definition` differs."""

    command: Any
    state: str
    one_shot: bool
    keep_if: str
    fail_on: List[str]
    cwd: str


class _Step(TypedDict):
    id: str
    name: str
    index: int
    commands: List[Command]
    env: Dict[str, str]
    key: str


class Step(_Step, total=False):
    """A step; `key` is the identity of what it does."""

    guard: str
    guard_timeout: float
    timeout: float
    retries: Retries
    cwd: str
    run_as: str
    on_failure: str
    always: bool
    files: List[FilePair]
    outputs: List[FilePair]
    wait_for: Probe
    service: Service
    skip: Skip


class _Plan(TypedDict):
    format: str
    name: str
    file: str
    path: str
    key: str
    project: str
    cwd: str
    variables: Dict[str, str]
    secrets: List[str]
    references: List[str]
    warnings: List[str]
    forget: Optional[List[str]]
    check: bool
    steps: List[Step]
    fingerprint: str


class Plan(_Plan, total=False):
    """A plan. `forget` has the steps that run again whatever was remembered; None stands for all.

    For the controller: `given` are the options that choose its variables, `node` is the node of several whose
    outputs go to a folder of their own, `origin` the folder in which the outputs' places begin.
    """

    run: str
    dry: bool
    grace: float
    given: List[str]
    node: str
    origin: str

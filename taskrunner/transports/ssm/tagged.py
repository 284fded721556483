"""Many instances that a tag names, begun by one command: AWS itself goes from one to the next."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from taskrunner.aws.session import Account, explained
from taskrunner.errors import NotFoundError, UsageError
from taskrunner.transports.ssm import command
from taskrunner.transports.ssm.client import InstanceClient
from taskrunner.transports.ssm.pacing import LONGEST_COMMAND_S, REQUEST_DELIVERY_S, REQUEST_TIMEOUT_S
from taskrunner.transports.ssm.request import Pending, Request


class Member(NamedTuple):
    """An instance as Systems Manager knows it."""

    instance: str
    name: str
    address: str
    ping: str


def target(text: str) -> dict[str, Any]:
    """The target of SendCommand that `tag:NAME=VALUE[,VALUE]` means. Raises UsageError."""
    key, equals, values = text.partition("=")
    if not key.startswith("tag:") or len(key) < 5 or not equals or not values:
        raise UsageError(f"--target {text}: expected tag:NAME=VALUE", "for example --target tag:Role=decode")
    return {"Key": key, "Values": values.split(",")}


def members(account: Account, text: str) -> list[Member]:
    """The instances that carry a tag. Raises UsageError, NotFoundError, TargetError."""
    wanted = target(text)
    try:
        pages = (
            account.client("ssm")
            .get_paginator("describe_instance_information")
            .paginate(Filters=[wanted], PaginationConfig={"PageSize": 50})
        )
        nodes = [
            Member(
                entry["InstanceId"],
                entry.get("ComputerName", ""),
                entry.get("IPAddress", ""),
                entry["PingStatus"],
            )
            for page in pages
            for entry in page["InstanceInformationList"]
        ]
    except Exception as error:
        raise explained(error) from error
    if not nodes:
        raise NotFoundError(
            f"no instance with {text} is registered with Systems Manager in {account.region}",
            "check the tag, the region and the agent; `runner wait-ready` checks one instance by its id",
        )
    return sorted(nodes)


class Group:
    """The command that starts a run on all that a tag names; `run` is its id, the same everywhere.

    `concurrency` and `errors` are MaxConcurrency and MaxErrors. With `waits`, the command lasts as long as
    the run, so that they count runs and not just starts.
    """

    def __init__(self, text: str, run: str, *, concurrency: str, errors: str, waits: bool) -> None:
        self.run = run
        self._targets = [target(text)]
        self._concurrency, self._errors = concurrency, errors
        self.waits = waits
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._sent = ""
        self._sent_request: Request | None = None

    def ask(self, client: InstanceClient, fields: Mapping[str, Any]) -> Pending:
        """The question to this instance: a part of the one command, which the first to ask sends. Who asks
        again, because of no answer, sends one of its own.
        """
        with self._lock:
            if client.instance in self._asked:
                return client.post("start", fields)
            self._asked.add(client.instance)
            if self._sent_request is None:
                self._sent_request = self._send(client, fields)
        own = replace(
            self._sent_request, instance=client.instance, own={}, delivery=LONGEST_COMMAND_S, fanned=True
        )
        return client.dispatcher.expect(own, self._sent)

    def _send(self, client: InstanceClient, fields: Mapping[str, Any]) -> Request:
        if client.bucket is None:
            for part in client.parts_of_engine(instance=""):
                client.dispatcher.send_to(self._targets, part, "100%", "100%")
        shared = client.shared("start")
        shared["engine"]["patience"] = REQUEST_DELIVERY_S
        request = Request(
            "",
            client.python,
            shared,
            {"about": {**fields, "whole": self.waits}},
            LONGEST_COMMAND_S if self.waits else REQUEST_TIMEOUT_S,
            REQUEST_TIMEOUT_S,
        )
        if len(command.script(client.python, {**shared, **request.message})) > command.LIMIT:
            client.too_large(command.LIMIT)
        self._sent = client.dispatcher.send_to(self._targets, request, self._concurrency, self._errors)
        return request

"""Run Command as a service: what it accepts, when it shows what, and how it lies."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.aws.agent import Agent, Instance, Invocation, cut

DOCUMENT = "AWS-RunShellScript"
TIMEOUT = re.compile(r"([1-9][0-9]{0,4})|(1[0-6][0-9]{4})|(17[0-1][0-9]{3})|(172[0-7][0-9]{2})|(172800)")
PAGE = 50
LISTED = 2_500


class ServiceError(Exception):
    """An error as the API gives it."""

    def __init__(self, code: str, message: str = "", status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


@dataclass
class Command:
    """A command that was sent."""

    id: str
    comment: str
    sent: float
    timeout: float
    invocations: dict[str, Invocation]
    waiting: list[Instance]
    concurrency: int
    errors: int
    request: dict[str, Any]
    passed_by: int = 0


class FakeSSM:
    """The service, with the knobs that make it hurt; times in seconds."""

    def __init__(self, folder: Path, region: str = "us-east-1", account: str = "123456789012") -> None:
        self.folder, self.region, self.account = folder, region, account
        self.visibility = self.delivery = self.result = 0.0
        self.instances: dict[str, Instance] = {}
        self.agents: dict[str, Agent] = {}
        self.commands: dict[str, Command] = {}
        self.ahead = 0.0
        """By how much the service's clock was put forward."""
        self.ends_as = ""
        """What becomes of each command instead of reaching the agent."""
        self.lock = threading.RLock()

    def now(self) -> float:
        return time.time() + self.ahead

    def add(self, id: str, **about: Any) -> Instance:
        """A new instance, registered and online."""
        state = self.folder / id / "state"
        state.parent.mkdir(parents=True)
        instance = Instance(id, state, **about)
        self.instances[id] = instance
        self.agents[id] = Agent(instance, self.folder / id / "orchestration", self.now, self.region)
        return instance

    def close(self) -> None:
        for command in self.commands.values():
            for found in command.invocations.values():
                found.cancelled = True
        for instance in self.instances.values():
            for _ in instance.workers:
                instance.commands.put(None)
            for worker in instance.workers:
                worker.join(10)

    def reboot(self, id: str) -> None:
        """The machine goes down with all that runs, and comes back."""
        instance = self.instances[id]
        running = [
            found
            for command in self.commands.values()
            for found in command.invocations.values()
            if found.instance == id and found.status == "InProgress"
        ]
        instance.power_off()
        for found in running:
            found.status = found.details = "Failed"

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        handler = getattr(self, "do_" + operation, None)
        if handler is None:
            raise ServiceError("UnknownOperationException", operation)
        self._age()
        with self.lock:
            answer: dict[str, Any] = handler(request)
        return answer

    def do_SendCommand(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("DocumentName") != DOCUMENT:
            raise ServiceError("InvalidDocument", f"{request.get('DocumentName')} does not exist")
        if len(request.get("Comment", "")) > 100:
            raise ServiceError("ValidationException", "Comment: length must be at most 100")
        if not 30 <= request.get("TimeoutSeconds", 3600) <= 2_592_000:
            raise ServiceError("ValidationException", "TimeoutSeconds: 30 to 2592000")
        if len(json.dumps(request)) > 65_536:
            raise ServiceError("MaxDocumentSizeExceeded", "The size limit of a document is 64 KB")
        parameters = request.get("Parameters", {})
        for name, value in parameters.items():
            if name not in ("commands", "workingDirectory", "executionTimeout"):
                raise ServiceError("InvalidParameters", f"{name} is not a parameter of the document")
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ServiceError("SerializationException", f"{name}: a list of strings is expected")
        if not parameters.get("commands"):
            raise ServiceError("InvalidParameters", "commands is required")
        timeout = parameters.get("executionTimeout", ["3600"])[0]
        if not TIMEOUT.fullmatch(timeout):
            raise ServiceError("InvalidParameters", f"executionTimeout {timeout} does not match")
        ids, targets = request.get("InstanceIds", []), request.get("Targets", [])
        if len(ids) > 50 or len(targets) > 5 or bool(ids) == bool(targets):
            raise ServiceError("ValidationException", "InstanceIds (at most 50) or Targets (at most 5)")
        chosen = [self.instances.get(id) for id in ids] if ids else list(self._matching(targets))
        wrong = [id for id, found in zip(ids, chosen, strict=False) if found is None or not found.registered]
        if wrong:
            raise ServiceError(
                "InvalidInstanceId",
                f"Instances [[{', '.join(wrong)}]] not in a valid state for account {self.account}",
            )
        if any(found and found.platform != "Linux" for found in chosen):
            raise ServiceError("UnsupportedPlatformType", "the document is for Linux")
        whole = [found for found in chosen if found is not None]
        command = Command(
            str(uuid.uuid4()),
            request.get("Comment", ""),
            self.now(),
            request.get("TimeoutSeconds", 3600),
            {},
            whole,
            _share(request.get("MaxConcurrency", "50"), len(whole)),
            _share(request.get("MaxErrors", "0"), len(whole)),
            request,
        )
        self.commands[command.id] = command
        self._dispatch(command)
        return {"Command": self._command(command)}

    def _matching(self, targets: list[dict[str, Any]]) -> Iterator[Instance]:
        for instance in self.instances.values():
            if instance.registered and all(_matches(instance, target) for target in targets):
                yield instance

    def _dispatch(self, command: Command) -> None:
        """Begin on as many further instances as MaxConcurrency and MaxErrors allow."""
        failed = sum(found.status in ("Failed", "TimedOut") for found in command.invocations.values())
        running = sum(not found.over for found in command.invocations.values())
        while command.waiting and running < command.concurrency and failed <= command.errors:
            instance = command.waiting.pop(0)
            parameters = command.request["Parameters"]
            timeout = int(parameters.get("executionTimeout", ["3600"])[0])
            found = Invocation(
                command.id,
                instance.id,
                parameters["commands"],
                timeout if timeout >= 5 else 3600,
                parameters.get("workingDirectory", [""])[0],
                self.now(),
            )
            command.invocations[instance.id] = found
            agent = self.agents[instance.id]
            agent.delivery, agent.result = self.delivery, self.result
            if self.ends_as:
                found.status, found.details = "Failed", self.ends_as
            elif instance.reached:
                instance.commands.put(found)
            running += 1
        if command.waiting and failed > command.errors:
            command.passed_by += len(command.waiting)
            command.waiting.clear()

    def reconnect(self, id: str) -> None:
        """The agent is reached again: what waited for it is delivered."""
        self.instances[id].ping = "Online"
        for command in self.commands.values():
            found = command.invocations.get(id)
            if found and found.status == "Pending" and not found.cancelled:
                found.sent = self.now()
                self.instances[id].commands.put(found)

    def _age(self) -> None:
        with self.lock:
            for command in self.commands.values():
                for found in command.invocations.values():
                    late = self.now() - found.sent
                    if found.status == "Pending" and found.cancelled:
                        found.status = found.details = "Cancelled"
                    elif late > {
                        "Pending": command.timeout,
                        "InProgress": command.timeout + found.timeout,
                    }.get(found.status, late):
                        found.status, found.details = "TimedOut", "Delivery Timed Out"
                self._dispatch(command)

    def do_GetCommandInvocation(self, request: dict[str, Any]) -> dict[str, Any]:
        command = self.commands.get(request["CommandId"])
        found = command.invocations.get(request["InstanceId"]) if command else None
        if found is None or self.now() - found.sent < self.visibility:
            raise ServiceError("InvocationDoesNotExist")
        shown = self._shown(found)
        return {
            "CommandId": found.command,
            "InstanceId": found.instance,
            "DocumentName": DOCUMENT,
            **shown,
            "ResponseCode": found.code if self._seen(found) else -1,
            "StandardOutputContent": _text(found.stdout) if self._seen(found) else "",
            "StandardErrorContent": _text(found.stderr) if self._seen(found) else "",
        }

    def _seen(self, found: Invocation) -> bool:
        """Whether the end of a command is known to the service already."""
        return found.over and (not found.started or (found.seen > 0 and self.now() >= found.seen))

    def _shown(self, found: Invocation) -> dict[str, str]:
        if found.over and not self._seen(found):
            return {"Status": "InProgress", "StatusDetails": "InProgress"}
        if found.cancelled and not found.over:
            return {"Status": "Cancelling", "StatusDetails": "Cancelling"}
        return {"Status": found.status, "StatusDetails": found.details.replace(" ", "")}

    def do_ListCommandInvocations(self, request: dict[str, Any]) -> dict[str, Any]:
        size = request.get("MaxResults", PAGE)
        if not 1 <= size <= PAGE:
            raise ServiceError("ValidationException", "MaxResults: 1 to 50")
        found = [
            invocation
            for command in self.commands.values()
            if request.get("CommandId") in (None, command.id)
            for invocation in command.invocations.values()
            if self.now() - invocation.sent >= self.visibility
            and request.get("InstanceId") in (None, invocation.instance)
        ]
        first = int(request.get("NextToken") or 0)
        listed = []
        for invocation in found[first : first + size]:
            entry: dict[str, Any] = {
                "CommandId": invocation.command,
                "InstanceId": invocation.instance,
                "DocumentName": DOCUMENT,
                **self._shown(invocation),
            }
            if request.get("Details"):
                text = invocation.stdout if self._seen(invocation) else b""
                if invocation.stderr and self._seen(invocation):
                    text += b"\n----------ERROR-------\n" + invocation.stderr
                entry["CommandPlugins"] = [
                    {
                        "Name": "aws:runShellScript",
                        "Status": entry["Status"],
                        "ResponseCode": invocation.code,
                        "Output": _text(cut(text, LISTED, b"---Output truncated---")),
                    }
                ]
            listed.append(entry)
        more = {"NextToken": str(first + size)} if first + size < len(found) else {}
        return {"CommandInvocations": listed, **more}

    def do_ListCommands(self, request: dict[str, Any]) -> dict[str, Any]:
        found = [
            command
            for command in self.commands.values()
            if request.get("CommandId") in (None, command.id) and self.now() - command.sent >= self.visibility
        ]
        return {"Commands": [self._command(command) for command in found]}

    def _command(self, command: Command) -> dict[str, Any]:
        statuses = [self._shown(found)["Status"] for found in command.invocations.values()]
        whole = len(statuses) + len(command.waiting)
        over = [s for s in statuses if s in ("Success", "Failed", "TimedOut", "Cancelled")]
        status = "Pending" if not whole else "InProgress" if len(over) < whole else "Success"
        if over and len(over) == whole and set(over) != {"Success"}:
            status = "Failed"
        return {
            "CommandId": command.id,
            "Comment": command.comment,
            "DocumentName": DOCUMENT,
            "Status": status,
            "StatusDetails": status if whole else "NoInstancesInTag",
            "TargetCount": whole,
            "CompletedCount": len(over),
            "ErrorCount": sum(s in ("Failed", "TimedOut") for s in over),
            "RequestedDateTime": command.sent,
            "InstanceIds": command.request.get("InstanceIds", []),
            "Targets": command.request.get("Targets", []),
        }

    def do_CancelCommand(self, request: dict[str, Any]) -> dict[str, Any]:
        command = self.commands.get(request["CommandId"])
        if command is None:
            raise ServiceError("InvalidCommandId")
        ids = request.get("InstanceIds") or list(command.invocations)
        for id in ids:
            found = command.invocations.get(id)
            if found is not None and not found.over:
                found.cancelled = True  # no guarantee: who is about to end ends as it does
        return {}

    def do_DescribeInstanceInformation(self, request: dict[str, Any]) -> dict[str, Any]:
        filters = request.get("Filters", [])
        targets = [{"Key": entry["Key"], "Values": entry["Values"]} for entry in filters]
        found = [
            instance
            for instance in self.instances.values()
            if instance.registered and all(_matches(instance, target) for target in targets)
        ]
        return {
            "InstanceInformationList": [
                {
                    "InstanceId": instance.id,
                    "PingStatus": instance.ping,
                    "PlatformType": instance.platform,
                    "LastPingDateTime": self.now() - 60,
                    "AgentVersion": "3.3.4793.0",
                    "PlatformName": "Ubuntu",
                    "PlatformVersion": "22.04",
                    "ComputerName": instance.id,
                    "IPAddress": "10.0.0.5",
                    "ResourceType": "EC2Instance",
                }
                for instance in found
            ]
        }

    def do_StartSession(self, request: dict[str, Any]) -> dict[str, Any]:
        instance = self.instances.get(request["Target"])
        if instance is None or not instance.reached:
            raise ServiceError("TargetNotConnected", f"{request['Target']} is not connected.")
        session = "session-" + uuid.uuid4().hex[:17]
        return {
            "SessionId": session,
            "TokenValue": uuid.uuid4().hex,
            "StreamUrl": f"wss://localhost/{session}",
        }


def _matches(instance: Instance, target: dict[str, Any]) -> bool:
    key = target["Key"]
    if key in ("InstanceIds", "InstanceId"):
        return instance.id in target["Values"]
    if key == "PingStatus":
        return instance.ping in target["Values"]
    return key.startswith("tag:") and instance.tags.get(key[4:]) in target["Values"]


def _share(given: str, whole: int) -> int:
    """A number, or a percentage of the targets."""
    return max(1, whole * int(given[:-1]) // 100) if given.endswith("%") else int(given)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")

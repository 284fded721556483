"""Commands to instances of one region and what became of them: one sender, one poller for all.

What several instances are asked at about the same time goes in one SendCommand, and one listing tells how
far all of them are. Of an instance's five places for commands, at most three are used.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from taskrunner import log
from taskrunner.aws.session import Account, CredentialsError, Throttled, code_of, explained
from taskrunner.errors import NeverRanError, TargetError
from taskrunner.transports.ssm import command, pacing
from taskrunner.transports.ssm.request import Request

DOCUMENT = "AWS-RunShellScript"
AT_ONCE = 50
"""Instances that one SendCommand may name, and invocations on a page of a listing."""
PLACES = 3
OVER = {
    "Success",
    "Failed",
    "TimedOut",
    "Cancelled",
    "Undeliverable",
    "Terminated",
    "DeliveryTimedOut",
    "ExecutionTimedOut",
    "InvalidPlatform",
    "AccessDenied",
}
UNDELIVERED = {"DeliveryTimedOut", "Undeliverable", "InvalidPlatform", "AccessDenied"}


class Dispatcher:
    """Sends and looks, in threads of its own, as long as there is something to do."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._condition = threading.Condition()
        self._waiting: list[Request] = []
        self._sent: dict[str, dict[str, Request]] = {}
        self._looks: dict[str, float] = {}
        self._busy: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(6, "ssm")
        self._threads: list[threading.Thread] = []
        self._first = pacing.FIRST_POLL_S
        self.followed: set[str] = set()
        """Instances whose news are waited for in this process."""

    def post(self, ask: Request) -> Request:
        """Send it when there is a place for it on the instance."""
        with self._condition:
            ask.due = time.monotonic() + max(pacing.BATCH_WINDOW_S, ask.joins)
            self._waiting.append(ask)
            self._awake()
        return ask

    def cancel(self, ask: Request) -> None:
        """See to it that what was not delivered yet is not."""
        with self._condition:
            ask.cancelled = True
            if ask in self._waiting:
                self._waiting.remove(ask)
                ask.status = "Cancelled"
                ask.end(error=TargetError(f"{ask.instance}: cancelled before it was sent"))
                return
        if ask.command:
            with contextlib.suppress(Exception):
                self.account.client("ssm").cancel_command(CommandId=ask.command, InstanceIds=[ask.instance])

    def send_to(self, targets: Sequence[dict[str, Any]], ask: Request, concurrency: str, errors: str) -> str:
        """Send one request to all instances that match, as AWS goes about it; returns the command's id.

        Raises TargetError.
        """
        try:
            found = self.account.client("ssm").send_command(
                Targets=list(targets), MaxConcurrency=concurrency, MaxErrors=errors, **_content(ask, [ask])
            )
            return str(found["Command"]["CommandId"])
        except Exception as error:
            raise explained(error) from error

    def expect(self, ask: Request, sent: str) -> None:
        """Look for the answer of an instance to a command that was sent to many."""
        with self._condition:
            ask.command, ask.sent = sent, time.monotonic()
            self._sent.setdefault(sent, {})[ask.instance] = ask
            self._looks.setdefault(sent, time.monotonic() + self._first)
            self._busy[ask.instance] += 1
            self._awake()

    def _awake(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if not self._threads:
            self._threads = [
                threading.Thread(target=work, daemon=True) for work in (self._send_all, self._look_all)
            ]
            for thread in self._threads:
                thread.start()
        self._condition.notify_all()

    def _send_all(self) -> None:
        while True:
            with self._condition:
                while not (batch := self._batch()):
                    due = min((ask.due for ask in self._waiting), default=0.0) - time.monotonic()
                    self._condition.wait(due if due > 0 else 1.0)
                for ask in batch:
                    self._waiting.remove(ask)
                    self._busy[ask.instance] += 1
            self._pool.submit(self._send, batch)

    def _batch(self) -> list[Request]:
        """Requests that can go in one command now: one that is due, with others of the same kind, each for
        another instance.
        """
        now = time.monotonic()
        batch: dict[str, Request] = {}
        first = next((ask for ask in self._waiting if ask.due <= now and self._free(ask)), None)
        if first is None:
            return []
        for ask in self._waiting:
            if ask.instance in batch or not self._free(ask):
                continue
            same = (ask.python, ask.shared, ask.timeout, ask.delivery) == (
                first.python,
                first.shared,
                first.timeout,
                first.delivery,
            )
            if same and len(batch) < AT_ONCE:
                batch[ask.instance] = ask
                if len(batch) > 1 and len(_text([*batch.values()])) > command.LIMIT:
                    del batch[ask.instance]
                    break
        return list(batch.values())

    def _free(self, ask: Request) -> bool:
        return self._busy[ask.instance] < PLACES

    def _send(self, batch: list[Request]) -> None:
        pause = 0.5
        while True:
            try:
                found = self.account.client("ssm").send_command(
                    InstanceIds=[ask.instance for ask in batch], **_content(batch[0], batch)
                )
                break
            except Exception as error:
                wrong = explained(error, "SendCommand" if not code_of(error) else "")
                if code_of(error) == "InvalidInstanceId" and len(batch) > 1:
                    # One of them spoils it for all.
                    for ask in batch:
                        self._send([ask])
                    return
                if not _passes(error, wrong):
                    with self._condition:
                        for ask in batch:
                            self._busy[ask.instance] -= 1
                            ask.end(error=wrong)
                    return
                if isinstance(wrong, CredentialsError):
                    self.account.renew()
                log.warning("ssm.retry", instances=len(batch), error=str(wrong), pause=pause)
                self._trouble(batch, wrong)
                if all(ask.cancelled for ask in batch):
                    for ask in batch:
                        ask.end(error=wrong)
                    return
                time.sleep(pause)
                pause = min(pause * 2, pacing.RETRY_MAX_S)
        self._trouble(batch, None)
        log.info(
            "ssm.command",
            id=found["Command"]["CommandId"],
            do=batch[0].shared.get("do"),
            instances=",".join(ask.instance for ask in batch),
        )
        with self._condition:
            id = found["Command"]["CommandId"]
            self._sent[id] = {ask.instance: ask for ask in batch}
            for ask in batch:
                ask.command, ask.sent = id, time.monotonic()
            self._looks[id] = time.monotonic() + self._first
            self._condition.notify_all()
        for ask in batch:
            if ask.cancelled:
                self.cancel(ask)

    def _trouble(self, batch: list[Request], wrong: TargetError | None) -> None:
        """Note what keeps these from being sent; it keeps those that wait for their places, too."""
        instances = {ask.instance for ask in batch}
        with self._condition:
            for ask in [*batch, *(ask for ask in self._waiting if ask.instance in instances)]:
                ask.trouble = wrong

    def _look_all(self) -> None:
        while True:
            with self._condition:
                now = time.monotonic()
                due = [id for id, at in self._looks.items() if at <= now]
                for id in due:
                    # Who looks says when to look again.
                    del self._looks[id]
                if not due:
                    wait = min(self._looks.values(), default=now + 1.0) - now
                    self._condition.wait(max(0.01, wait))
            for id in due:
                self._pool.submit(self._look, id)

    def _look(self, id: str) -> None:
        began = time.monotonic()
        with self._condition:
            asks = dict(self._sent.get(id, {}))
        age = began - min((ask.sent for ask in asks.values()), default=began)
        quiet = began - max((ask.since or ask.sent for ask in asks.values()), default=began)
        most = min((ask.late for ask in asks.values()), default=pacing.POLL_MAX_S)
        ends = max((ask.ends for ask in asks.values()), default=0.0)
        pause = pacing.poll_pause(quiet, most, ends - time.time())
        try:
            found = {entry["InstanceId"]: entry for entry in self._state(id, list(asks))}
            missing = [ask for ask in asks.values() if ask.fanned and ask.instance not in found]
            passed_by = bool(missing) and age > pacing.VISIBLE_WITHIN_S and self._ended(id)
            for ask in asks.values():
                ask.trouble = None
                if ask in missing:
                    if passed_by:
                        ask.end(error=NeverRanError("AWS skipped it: too many of the others had failed"))
                    continue
                self._judge(ask, found.get(ask.instance))
        except Exception as error:
            wrong = explained(error)
            if isinstance(wrong, CredentialsError):
                self.account.renew()
            for ask in asks.values():
                ask.trouble = wrong
            pause = max(pause, pacing.RETRY_MAX_S)
            log.warning("ssm.retry", command=id, error=str(wrong), pause=pause)
        with self._condition:
            left = self._sent.get(id, {})
            for ask in asks.values():
                if ask.done.is_set() and left.get(ask.instance) is ask:
                    del left[ask.instance]
                    self._busy[ask.instance] -= 1
            if left:
                self._looks[id] = began + pause
            else:
                self._sent.pop(id, None)
            self._condition.notify_all()

    def _state(self, id: str, instances: list[str]) -> Iterator[dict[str, Any]]:
        """How far a command is on each instance, with `Output` where that is known whole."""
        client = self.account.client("ssm")
        if len(instances) > 1:
            pages = client.get_paginator("list_command_invocations").paginate(
                CommandId=id, Details=True, PaginationConfig={"PageSize": AT_ONCE}
            )
            for page in pages:
                for entry in page["CommandInvocations"]:
                    plugins = entry.get("CommandPlugins") or [{}]
                    text = plugins[0].get("Output", "")
                    if entry["Status"] in OVER and command.begun(text) and command.answer(text) is None:
                        yield self._whole(id, entry["InstanceId"])  # a listing has its beginning only
                        continue
                    yield {**entry, "Output": text}
            return
        for instance in instances:
            with contextlib.suppress(client.exceptions.InvocationDoesNotExist):
                yield self._whole(id, instance)

    def _ended(self, id: str) -> bool:
        found = self.account.client("ssm").list_commands(CommandId=id)["Commands"]
        return bool(found) and found[0]["Status"] in OVER

    def _whole(self, id: str, instance: str) -> dict[str, Any]:
        found = self.account.client("ssm").get_command_invocation(CommandId=id, InstanceId=instance)
        return {**found, "Output": found["StandardOutputContent"]}

    def _judge(self, ask: Request, found: dict[str, Any] | None) -> None:
        if ask.done.is_set():
            return
        late = time.monotonic() - ask.sent
        if found is None:
            if late > pacing.VISIBLE_WITHIN_S:
                ask.end(error=TargetError(f"{ask.instance}: AWS has lost command {ask.command}"))
            return
        status = found["Status"]
        ask.status = details = found.get("StatusDetails", status).replace(" ", "")
        ask.running = ask.running or status not in ("Pending", "Delayed", "Cancelling", "Cancelled")
        if status not in OVER and details not in OVER:
            if late > ask.timeout + ask.delivery:
                ask.end(error=TargetError(f"{ask.instance}: no result of command {ask.command} ({details})"))
            return
        # The exit status says nothing: what counts stands in the output, or it did not come so far.
        output = command.answer(found["Output"])
        if output is not None:
            self._first = pacing.first_poll(self._first, late)
            log.debug("ssm.answered", instance=ask.instance, command=ask.command, seconds=round(late, 2))
            ask.end(output)
            return
        ask.said = f"{found.get('StandardErrorContent', '')}\n{found['Output']}".strip()
        lines = ask.said.splitlines()
        telling = [line for line in lines if not line.startswith("failed to run commands")] or lines
        last = f": {telling[-1]}" if telling else ""
        ask.end(error=TargetError(f"{ask.instance}: the command ended with status {details}{last}"))


def _passes(error: Exception, wrong: TargetError) -> bool:
    """Whether what went wrong may pass: then it is tried again for as long as anybody waits for it."""
    from botocore.exceptions import BotoCoreError

    response = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    passing = isinstance(wrong, (CredentialsError, Throttled))
    return passing or status >= 500 or isinstance(error, BotoCoreError)


def _text(batch: Sequence[Request]) -> str:
    first = batch[0]
    own = {ask.instance: ask.own for ask in batch}
    return command.script(first.python, {**first.shared, "own": own})


def _content(first: Request, batch: Sequence[Request]) -> dict[str, Any]:
    """What SendCommand is given, but for whom it is for."""
    text = _text(batch) if first.instance else command.script(first.python, {**first.shared, **first.own})
    return {
        "DocumentName": DOCUMENT,
        "Comment": f"taskrunner {first.shared['do']} {first.own.get('about', {}).get('run', '')}".strip()[
            :100
        ],
        "TimeoutSeconds": max(30, min(first.delivery, 2_592_000)),
        "Parameters": {
            "commands": text.split("\n"),
            "executionTimeout": [str(max(60, min(first.timeout, 172_800)))],
        },
    }


_dispatchers: dict[tuple[str, str], Dispatcher] = {}
_lock = threading.Lock()


def dispatcher(region: str, profile: str) -> Dispatcher:
    """The one of a region and a profile, shared by all transports of this process."""
    with _lock:
        known = _dispatchers.get((region, profile))
        if known is None:
            known = _dispatchers[region, profile] = Dispatcher(Account(region, profile))
        return known

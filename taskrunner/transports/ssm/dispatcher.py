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
from taskrunner.transports.ssm.request import Pending, Request

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
        self._waiting: list[Pending] = []
        self._sent: dict[str, dict[str, Pending]] = {}
        self._looks: dict[str, float] = {}
        self._busy: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(6, "ssm")
        self._threads: list[threading.Thread] = []
        self._first = pacing.FIRST_POLL_S
        self.followed: set[str] = set()
        """Instances whose news are waited for in this process."""

    def post(self, request: Request) -> Pending:
        """Send it when there is a place for it on the instance."""
        pending = Pending(request)
        with self._condition:
            pending.due = time.monotonic() + max(pacing.BATCH_WINDOW_S, pending.request.joins)
            self._waiting.append(pending)
            self._awake()
        return pending

    def cancel(self, pending: Pending) -> None:
        """See to it that what was not delivered yet is not."""
        with self._condition:
            pending.cancelled = True
            if pending in self._waiting:
                self._waiting.remove(pending)
                pending.status = "Cancelled"
                pending.end(error=TargetError(f"{pending.instance}: cancelled before it was sent"))
                return
        if pending.command:
            with contextlib.suppress(Exception):
                self.account.client("ssm").cancel_command(
                    CommandId=pending.command, InstanceIds=[pending.instance]
                )

    def send_to(
        self, targets: Sequence[dict[str, Any]], request: Request, concurrency: str, errors: str
    ) -> str:
        """Send one request to all instances that match, as AWS goes about it; returns the command's id.

        Raises TargetError.
        """
        try:
            answer = self.account.client("ssm").send_command(
                Targets=list(targets), MaxConcurrency=concurrency, MaxErrors=errors, **_content([request])
            )
            return str(answer["Command"]["CommandId"])
        except Exception as error:
            raise explained(error) from error

    def expect(self, request: Request, sent: str) -> Pending:
        """Look for the answer of an instance to a command that was sent to many."""
        pending = Pending(request)
        with self._condition:
            pending.command, pending.sent = sent, time.monotonic()
            self._sent.setdefault(sent, {})[pending.instance] = pending
            self._looks.setdefault(sent, time.monotonic() + self._first)
            self._busy[pending.instance] += 1
            self._awake()
        return pending

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
                    due = min((pending.due for pending in self._waiting), default=0.0) - time.monotonic()
                    self._condition.wait(due if due > 0 else 1.0)
                for pending in batch:
                    self._waiting.remove(pending)
                    self._busy[pending.instance] += 1
            self._pool.submit(self._send, batch)

    def _batch(self) -> list[Pending]:
        """Requests that can go in one command now: one that is due, with others of the same kind, each for
        another instance.
        """
        now = time.monotonic()
        batch: dict[str, Pending] = {}
        first = next(
            (pending for pending in self._waiting if pending.due <= now and self._free(pending)), None
        )
        if first is None:
            return []
        for pending in self._waiting:
            if pending.instance in batch or not self._free(pending):
                continue
            if pending.request.batch_key == first.request.batch_key and len(batch) < AT_ONCE:
                batch[pending.instance] = pending
                if len(batch) > 1 and len(_text([each.request for each in batch.values()])) > command.LIMIT:
                    del batch[pending.instance]
                    break
        return list(batch.values())

    def _free(self, pending: Pending) -> bool:
        return self._busy[pending.instance] < PLACES

    def _send(self, batch: list[Pending]) -> None:
        pause = 0.5
        while True:
            try:
                answer = self.account.client("ssm").send_command(
                    InstanceIds=[pending.instance for pending in batch],
                    **_content([pending.request for pending in batch]),
                )
                break
            except Exception as error:
                wrong = explained(error, "SendCommand" if not code_of(error) else "")
                if code_of(error) == "InvalidInstanceId" and len(batch) > 1:
                    # One of them spoils it for all.
                    for pending in batch:
                        self._send([pending])
                    return
                if not _passes(error, wrong):
                    with self._condition:
                        for pending in batch:
                            self._busy[pending.instance] -= 1
                            pending.end(error=wrong)
                    return
                if isinstance(wrong, CredentialsError):
                    self.account.renew()
                log.warning("ssm.retry", instances=len(batch), error=str(wrong), pause=pause)
                self._trouble(batch, wrong)
                if all(pending.cancelled for pending in batch):
                    for pending in batch:
                        pending.end(error=wrong)
                    return
                time.sleep(pause)
                pause = min(pause * 2, pacing.RETRY_MAX_S)
        self._trouble(batch, None)
        log.info(
            "ssm.command",
            id=answer["Command"]["CommandId"],
            do=batch[0].request.shared.get("do"),
            instances=",".join(pending.instance for pending in batch),
        )
        with self._condition:
            id = answer["Command"]["CommandId"]
            self._sent[id] = {pending.instance: pending for pending in batch}
            for pending in batch:
                pending.command, pending.sent = id, time.monotonic()
            self._looks[id] = time.monotonic() + self._first
            self._condition.notify_all()
        for pending in batch:
            if pending.cancelled:
                self.cancel(pending)

    def _trouble(self, batch: list[Pending], wrong: TargetError | None) -> None:
        """Note what keeps these from being sent; it keeps those that wait for their places, too."""
        instances = {pending.instance for pending in batch}
        with self._condition:
            for pending in [*batch, *(pending for pending in self._waiting if pending.instance in instances)]:
                pending.trouble = wrong

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
            replies = dict(self._sent.get(id, {}))
        age = began - min((pending.sent for pending in replies.values()), default=began)
        quiet = began - max(
            (pending.request.since or pending.sent for pending in replies.values()), default=began
        )
        most = min((pending.late for pending in replies.values()), default=pacing.POLL_MAX_S)
        ends = max((pending.request.ends for pending in replies.values()), default=0.0)
        pause = pacing.poll_pause(quiet, most, ends - time.time())
        try:
            entries = {entry["InstanceId"]: entry for entry in self._state(id, list(replies))}
            missing = [
                pending
                for pending in replies.values()
                if pending.request.fanned and pending.instance not in entries
            ]
            passed_by = bool(missing) and age > pacing.VISIBLE_WITHIN_S and self._ended(id)
            for pending in replies.values():
                pending.trouble = None
                if pending in missing:
                    if passed_by:
                        pending.end(error=NeverRanError("AWS skipped it: too many of the others had failed"))
                    continue
                self._judge(pending, entries.get(pending.instance))
        except Exception as error:
            wrong = explained(error)
            if isinstance(wrong, CredentialsError):
                self.account.renew()
            for pending in replies.values():
                pending.trouble = wrong
            pause = max(pause, pacing.RETRY_MAX_S)
            log.warning("ssm.retry", command=id, error=str(wrong), pause=pause)
        with self._condition:
            left = self._sent.get(id, {})
            for pending in replies.values():
                if pending.done.is_set() and left.get(pending.instance) is pending:
                    del left[pending.instance]
                    self._busy[pending.instance] -= 1
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
        commands = self.account.client("ssm").list_commands(CommandId=id)["Commands"]
        return bool(commands) and commands[0]["Status"] in OVER

    def _whole(self, id: str, instance: str) -> dict[str, Any]:
        invocation = self.account.client("ssm").get_command_invocation(CommandId=id, InstanceId=instance)
        return {**invocation, "Output": invocation["StandardOutputContent"]}

    def _judge(self, pending: Pending, invocation: dict[str, Any] | None) -> None:
        if pending.done.is_set():
            return
        late = time.monotonic() - pending.sent
        if invocation is None:
            if late > pacing.VISIBLE_WITHIN_S:
                pending.end(error=TargetError(f"{pending.instance}: AWS has lost command {pending.command}"))
            return
        status = invocation["Status"]
        pending.status = details = invocation.get("StatusDetails", status).replace(" ", "")
        pending.running = pending.running or status not in ("Pending", "Delayed", "Cancelling", "Cancelled")
        if status not in OVER and details not in OVER:
            if late > pending.request.timeout + pending.request.delivery:
                pending.end(
                    error=TargetError(
                        f"{pending.instance}: no result of command {pending.command} ({details})"
                    )
                )
            return
        # The exit status says nothing: what counts stands in the output, or it did not come so far.
        output = command.answer(invocation["Output"])
        if output is not None:
            self._first = pacing.first_poll(self._first, late)
            log.debug(
                "ssm.answered", instance=pending.instance, command=pending.command, seconds=round(late, 2)
            )
            pending.end(output)
            return
        pending.printed = f"{invocation.get('StandardErrorContent', '')}\n{invocation['Output']}".strip()
        lines = pending.printed.splitlines()
        telling = [line for line in lines if not line.startswith("failed to run commands")] or lines
        last = f": {telling[-1]}" if telling else ""
        pending.end(error=TargetError(f"{pending.instance}: the command ended with status {details}{last}"))


def _passes(error: Exception, wrong: TargetError) -> bool:
    """Whether what went wrong may pass: then it is tried again for as long as anybody waits for it."""
    from botocore.exceptions import BotoCoreError

    response = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    passing = isinstance(wrong, (CredentialsError, Throttled))
    return passing or status >= 500 or isinstance(error, BotoCoreError)


def _text(batch: Sequence[Request]) -> str:
    first = batch[0]
    # One that names no instance is for all that AWS finds: what it says of its own is for them all.
    own = {"own": {each.instance: each.message for each in batch}} if first.instance else first.message
    return command.script(first.python, {**first.shared, **own})


def _content(batch: Sequence[Request]) -> dict[str, Any]:
    """What SendCommand is given, but for whom it is for."""
    first = batch[0]
    comment = f"taskrunner {first.shared['do']} {first.own.get('about', {}).get('run', '')}".strip()
    return {
        "DocumentName": DOCUMENT,
        "Comment": comment[:100],
        "TimeoutSeconds": max(30, min(first.delivery, 2_592_000)),
        "Parameters": {
            "commands": _text(batch).split("\n"),
            "executionTimeout": [str(max(60, min(first.timeout, 172_800)))],
        },
    }


_dispatchers: dict[tuple[str, str], Dispatcher] = {}
_lock = threading.Lock()


def dispatcher(region: str, profile: str) -> Dispatcher:
    """The one of a region and a profile, shared by all transports of this process."""
    with _lock:
        existing = _dispatchers.get((region, profile))
        if existing is None:
            existing = _dispatchers[region, profile] = Dispatcher(Account(region, profile))
        return existing

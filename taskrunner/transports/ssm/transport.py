"""An instance as a target that only Run Command reaches: the engine there does the work, and is asked."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from taskrunner.aws.session import HopelessError, NotRegistered
from taskrunner.engine.node.one_shot import STATE
from taskrunner.engine.plan import Plan
from taskrunner.engine.store.follow import ALL, NONE, Chunk, Cursor
from taskrunner.errors import UsageError
from taskrunner.transports import staging
from taskrunner.transports.remote import RECONNECT_TIMEOUT, RemoteTransport, T
from taskrunner.transports.replies import Busy
from taskrunner.transports.ssm import file_copy, pacing
from taskrunner.transports.ssm.bucket import Bucket
from taskrunner.transports.ssm.client import InstanceClient, Lost
from taskrunner.transports.ssm.dispatcher import dispatcher
from taskrunner.transports.ssm.follower import Follower, PendingStart
from taskrunner.transports.ssm.readiness import registered
from taskrunner.transports.ssm.request import Pending
from taskrunner.transports.ssm.tagged import Group
from taskrunner.transports.ssm.target import parse

STREAMS = ("auto", "poll", "s3")


class SsmTransport(RemoteTransport):
    """Runs on an instance that Systems Manager's Run Command reaches.

    `target` is `ssm://[user@]i-...`. `bucket` is an S3 bucket for what is too large or too secret for a
    command (default: TASKRUNNER_BUCKET). `stream` says how output comes: by asking the node ("poll"), by
    segments that it puts into the bucket ("s3"), or as it fits ("auto"). `connect_timeout` is the time, in
    seconds, in which the first command must be delivered. The other options are those of SshTransport.

    One transport is for one thread at a time, but for `cancel`.
    """

    def __init__(
        self,
        target: str,
        *,
        python: str = "python3",
        state: str = "",
        connect_timeout: float = pacing.DELIVERY_TIMEOUT_S,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        accept_new_host_keys: bool = False,
        region: str = "",
        profile: str = "",
        bucket: str | None = None,
        stream: str = "",
    ) -> None:
        super().__init__(target)
        parsed = parse(target)
        self._dispatcher = dispatcher(region or parsed.region, profile or parsed.profile)
        named = os.environ.get("TASKRUNNER_BUCKET", "") if bucket is None else bucket
        named = parsed.bucket or named
        self.mode = stream or parsed.stream or "auto"
        if self.mode not in STREAMS:
            raise UsageError(f"--stream {self.mode}: expected one of {', '.join(STREAMS)}")
        if self.mode == "s3" and not named:
            raise UsageError("--stream s3 needs a bucket", "set --bucket NAME or TASKRUNNER_BUCKET")
        self.bucket = Bucket(self._dispatcher.account, named) if named else None
        self.client = InstanceClient(
            parsed.instance, parsed.user, python, state, self._dispatcher, self.bucket, connect_timeout
        )
        self._patience = reconnect_timeout
        self.group: Group | None = None
        """The command that starts the run on this instance and others."""
        self._who = uuid.uuid4().hex
        self._beginnings: dict[str, PendingStart] = {}
        self._cancels: dict[str, Pending] = {}
        self._secret: list[str] = []

    @property
    def skew(self) -> float:
        """Seconds by which the node's clock is ahead of ours."""
        return self.client.skew

    def warm(self) -> None:
        """Load what talks to AWS, beside what this thread does."""

        def begin() -> None:
            try:
                self._dispatcher.account.client("ssm")
                if self.bucket is not None:
                    self.client.shared("ping")
            except Exception:
                return  # it shows with the first use

        self._warm(begin)

    def open(self) -> SsmTransport:
        """See to it that AWS can be asked; whether the node is there shows with the first command."""
        self._dispatcher.account.client("ssm")
        if self.bucket is not None:
            self.bucket.client()
        return self

    def hello(self) -> dict[str, Any]:
        """What the node is. Raises TargetError."""
        if not self.client.hello:
            self._ask("greet")
        return self.client.hello

    def check(self) -> None:
        """Ask AWS whether it hears of the instance. Raises TargetError with what is in the way."""
        stage = registered(self._dispatcher.account, self.client.instance)
        if not stage.ready:
            kind = HopelessError if stage.hopeless else NotRegistered
            raise kind(f"{self.client.name}: {stage.detail}", stage.hint)

    def close(self) -> None:
        """Leave the node. Runs go on."""
        for pending in self._cancels.values():
            pending.done.wait(10)
        self._forget_secrets()
        if self.bucket is not None:
            self.bucket.close()

    def start(self, run: str, plan: Plan) -> Plan:
        values = plan["variables"]
        named = [values[name] for name in plan["references"]]
        # What is made of a name is no secret yet.
        secrets = [name for name in plan["secrets"] if not any(url in values[name] for url in named)]
        if secrets and self.bucket is None:
            raise UsageError(
                f"{', '.join(secrets)}: secrets cannot go into a command, which AWS keeps for 30 days",
                "use --bucket NAME (encrypted), or refer to it: ssm-parameter:///PATH, secretsmanager://NAME",
            )
        plan = staging.stage(plan, f"{STATE}/runs/{run}", self._place)
        with_plan = self._with_plan(plan, bool(secrets))
        fields = {
            "run": run,
            "output": ALL,
            "at": Cursor(),
            "wait": pacing.FIRST_NEWS_S,
            "who": self._who,
        }

        def post() -> Pending:
            whole = {**fields, **with_plan()}
            if self.group is not None:
                return self.group.ask(self.client, whole)
            return self.client.post("start", whole, delivery=max(30, int(self.client.timeout)))

        whole = self.group is not None and self.group.waits
        self._beginnings[run] = PendingStart(post, self._forget_secrets, whole)
        return plan

    def _with_plan(self, plan: Plan, secret: bool) -> Callable[[], dict[str, Any]]:
        """What gives the plan as a request can hold it: as it is, or where it is fetched from now."""
        text, bucket = json.dumps(plan).encode(), self.bucket
        digest = hashlib.sha256(text).hexdigest()
        if secret:
            assert bucket is not None
            key = bucket.once(text)
            self._secret.append(key)
            return lambda: {"url": bucket.signed(key), "digest": digest}
        if self.client.fits("start", {"plan": plan}):
            return lambda: {"plan": plan}
        if bucket is not None:
            return lambda: {"url": bucket.url(text, "plans"), "digest": digest}
        parts = self.client.send_parts(zlib.compress(text, 9), digest)
        return lambda: {"digest": digest, "parts": parts}

    def _forget_secrets(self) -> None:
        if self.bucket is not None:
            self.bucket.delete(self._secret)
            self._secret.clear()

    def follow(self, run: str, *, output: str, wait: bool = True) -> Iterator[Chunk | None]:
        following = Follower(
            self.client, run, output, self.mode, self._who, self._patience, self._beginnings.get(run)
        )
        self._followed.add(run)
        try:
            for chunk in following.chunks(wait):
                if chunk is None or not chunk.log or output != NONE:
                    yield chunk
            self._beginnings.pop(run, None)
            self._said[run] = following.end_status
        finally:
            self._followed.discard(run)

    def cancel(self, run: str) -> bool:
        beginning = self._beginnings.get(run)
        if beginning is not None and beginning.answer is None:
            beginning.cancelled = True
            self._dispatcher.cancel(beginning.pending)
        token = uuid.uuid4().hex
        if run not in self._followed:
            return bool(self._ask("cancel", run=run, token=token))
        self._cancels[run] = self.client.post("cancel", {"run": run, "token": token})
        return True

    def join(self, run: str) -> None:
        """Nobody is connected here, so nobody is missed."""

    def leave(self, run: str) -> None:
        """The same."""

    def followed(self, run: str) -> bool:
        """Whether somebody follows cannot be known: the same command always attaches."""
        return False

    def _place(self, files: staging.Files) -> str:
        root = f"{STATE}/files"
        self._again(lambda: self._send(root, files))
        return root

    def _send(self, root: str, files: staging.Files) -> int:
        return file_copy.send(self.client, root, files)

    def _conversation(self) -> file_copy.Reader:
        return file_copy.Reader(self.client)

    def _again(self, work: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return work()
            except (Lost, Busy):
                if time.monotonic() > deadline:
                    raise
                time.sleep(pacing.RETRY_S)

"""The double of Run Command does what the agent and the service do, as far as it is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.aws import ONE, Aws
from tests.aws.ssm import ServiceError
from tests.helpers import Process, wait_for

Write = Callable[..., Path]
Cli = Callable[..., Process]


GOLDEN = [
    ("echo out; echo err >&2", "Success", 0, "out\n", "err\n"),
    ("exit 3", "Failed", 3, "", "failed to run commands: exit status 3"),
    ("false; true", "Success", 0, "", ""),
    ("[[ a == a ]] && echo bash", "Failed", None, "", None),
    ("#!/bin/bash\n[[ a == a ]] && echo bash", "Success", 0, "bash\n", ""),
    ("exit 137", "TimedOut", 137, "", "failed to run commands: exit status 137"),
    ("echo x >&2; exit 168", "Success", 0, "", ""),
    ("exit 169", "Failed", 169, "", "failed to run commands: exit status 169"),
    ("pwd; echo ${USER-unset}", "Success", 0, "/usr/bin\nunset\n", ""),
    ("setsid sleep 2 </dev/null >/dev/null 2>&1 & echo at once", "Success", 0, "at once\n", ""),
    ("cat; echo no stdin", "Success", 0, "no stdin\n", ""),
]


def sent(cloud: Aws, script: str, **parameters: str) -> str:
    about = {name: [value] for name, value in parameters.items()}
    request = {
        "DocumentName": "AWS-RunShellScript",
        "InstanceIds": [ONE],
        "Parameters": {"commands": script.split("\n"), **about},
    }
    return str(cloud.ssm.call("SendCommand", request)["Command"]["CommandId"])


def ended(cloud: Aws, command: str) -> dict[str, Any]:
    def look() -> Any:
        found = cloud.ssm.call("GetCommandInvocation", {"CommandId": command, "InstanceId": ONE})
        return found if found["Status"] not in ("Pending", "InProgress", "Cancelling") else None

    return dict(wait_for(look, 20))


@pytest.mark.parametrize(("script", "status", "code", "out", "err"), GOLDEN)
def test_the_double_does_what_the_agent_does(
    cloud: Aws, script: str, status: str, code: int | None, out: str, err: str | None
) -> None:
    found = ended(cloud, sent(cloud, script))
    assert (found["Status"], found["StandardOutputContent"]) == (status, out)
    assert code in (None, found["ResponseCode"])
    assert err in (None, found["StandardErrorContent"])


def test_the_double_reboots_waits_for_pipes_and_cuts(cloud: Aws) -> None:
    again = ended(
        cloud,
        sent(cloud, 'echo x >> "$TASKRUNNER_HOME.n"; [ $(wc -l < "$TASKRUNNER_HOME.n") = 3 ] || exit 194'),
    )
    assert again["Status"] == "Success"
    held = ended(cloud, sent(cloud, "sleep 30 & echo started", executionTimeout="5"))
    assert (held["Status"], held["StandardOutputContent"]) == ("TimedOut", "started\n")
    long = ended(cloud, sent(cloud, "head -c 30000 /dev/zero | tr '\\0' x; exit 1"))["StandardOutputContent"]
    assert len(long) == 24000
    assert long.endswith("--output truncated--")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Comment": "x" * 101}, "ValidationException"),
        ({"InstanceIds": [ONE] * 51}, "ValidationException"),
        ({"InstanceIds": ["i-00000000"]}, "InvalidInstanceId"),
        ({"DocumentName": "No"}, "InvalidDocument"),
        ({"Parameters": {"commands": ["x"], "executionTimeout": ["172801"]}}, "InvalidParameters"),
        ({"Parameters": {"commands": ["x" * 70000]}}, "MaxDocumentSizeExceeded"),
        ({"Parameters": {"commands": "x"}}, "SerializationException"),
    ],
)
def test_the_double_refuses(cloud: Aws, change: dict[str, Any], code: str) -> None:
    request = {
        "DocumentName": "AWS-RunShellScript",
        "InstanceIds": [ONE],
        "Parameters": {"commands": ["true"]},
    }
    with pytest.raises(ServiceError) as caught:
        cloud.ssm.call("SendCommand", {**request, **change})
    assert caught.value.code == code

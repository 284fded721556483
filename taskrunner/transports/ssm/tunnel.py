"""Sessions through Systems Manager: SSH with its own client (ssh+ssm://), and a shell.

AWS gives a session to whoever may start one; its bytes are carried by AWS's own program, the Session Manager
plugin. As a program (`python -m taskrunner.transports.ssm.tunnel`) this is what SSH uses as ProxyCommand.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl, urlsplit

from taskrunner.aws.session import SESSION_MANAGER_PLUGIN, Account, code_of, explained
from taskrunner.errors import NotFoundError, TargetError, UsageError
from taskrunner.transports.ssm.target import INSTANCE

if TYPE_CHECKING:
    from taskrunner.transports.ssh.transport import SshTransport

SSH, COMMAND = "AWS-StartSSHSession", "AWS-StartInteractiveCommand"


def connect(target: str, *, region: str = "", profile: str = "", **options: Any) -> SshTransport:
    """The SSH transport of `ssh+ssm://[user@]i-...[:port][?region=...&profile=...]`.

    The public key is put on the instance for a minute (EC2 Instance Connect), where that is allowed; host
    keys are checked under the instance's id. Raises UsageError, NotFoundError.
    """
    from taskrunner.transports.ssh.transport import SshTransport

    for unused in ("bucket", "stream"):
        options.pop(unused, None)
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query))
    if not INSTANCE.fullmatch(parts.hostname or "") or set(query) - {"region", "profile"}:
        raise UsageError(f"{target!r} is not a target", "expected ssh+ssm://user@i-0123456789abcdef0")
    account = Account(region or query.get("region", ""), profile or query.get("profile", ""))
    _ = plugin()
    transport = SshTransport(f"ssh://{parts.netloc}", **options)
    endpoint = transport.dialer.endpoint
    public = next((file for file in endpoint.identity_files if Path(f"{file}.pub").exists()), "")
    words = [sys.executable, "-m", __name__, account.region, account.profile, str(parts.hostname)]
    words += [str(endpoint.port), endpoint.user, f"{public}.pub" if public else ""]
    transport.go_through(shlex.join(words))
    transport.name = target
    return transport


def plugin() -> str:
    """The program that carries sessions. Raises NotFoundError."""
    path = shutil.which(SESSION_MANAGER_PLUGIN)
    if path is None:
        raise NotFoundError(
            "a session needs AWS's Session Manager plugin, which is not installed here",
            'search for "Install the Session Manager plugin" in the Systems Manager User Guide',
        )
    return path


def session(account: Account, instance: str, document: str = "", **parameters: list[str]) -> NoReturn:
    """Become a session with an instance. Raises NotFoundError, TargetError."""
    program = plugin()
    request: dict[str, Any] = {"Target": instance}
    if document:
        request.update(DocumentName=document, Parameters=parameters)
    client = account.client("ssm")
    try:
        answer = client.start_session(**request)
    except Exception as error:
        if code_of(error) == "TargetNotConnected":
            raise TargetError(
                f"{instance}: no session: its agent is not connected",
                "`runner wait-ready` shows what is missing",
            ) from error
        raise explained(error, instance) from error
    answer.pop("ResponseMetadata", None)
    words = [json.dumps(answer), account.region, "StartSession", account.profile, json.dumps(request)]
    sys.stdout.flush()
    os.execv(program, [program, *words, client.meta.endpoint_url])


def main(region: str, profile: str, instance: str, port: str, user: str, public: str) -> NoReturn:
    """Carry one SSH connection on stdin and stdout."""
    account = Account(region, profile)
    try:
        if public:
            _lend(account, instance, user, Path(public).read_text(encoding="utf-8"))
        session(account, instance, SSH, portNumber=[port])
    except (TargetError, UsageError) as error:
        sys.exit(f"{error} {error.hint}".strip())


def _lend(account: Account, instance: str, user: str, key: str) -> None:
    """Let the key in for a minute. Where that is not possible, it may be known there already."""
    try:
        account.client("ec2-instance-connect").send_ssh_public_key(
            InstanceId=instance, InstanceOSUser=user, SSHPublicKey=key
        )
    except Exception as error:
        print(f"EC2 Instance Connect: {explained(error)}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])

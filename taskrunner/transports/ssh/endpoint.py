"""Where an ssh:// target is, and what ~/.ssh/config has to say about reaching it."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from taskrunner.errors import UsageError
from taskrunner.transports.ssh.config import config_of, expand

EXPECTED = "expected ssh://user@host:port"
KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")


class Endpoint(NamedTuple):
    """All that is needed to reach a host: names as in ssh_config(5)."""

    alias: str
    host: str
    port: int
    user: str
    identity_files: tuple[str, ...]
    certificate_files: tuple[str, ...]
    identities_only: bool
    identity_agent: str
    """The socket of the agent; "" for none."""
    proxy_jump: tuple[str, ...]
    proxy_command: str
    known_hosts: tuple[str, ...]
    host_key_alias: str
    accept_new: bool
    accept_asked: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"

    @property
    def name(self) -> str:
        """Who the host is to be, in known_hosts and in a certificate."""
        return self.host_key_alias or self.host

    @property
    def known_as(self) -> str:
        """The name in known_hosts."""
        return self.name if self.port == 22 or self.host_key_alias else f"[{self.name}]:{self.port}"


def parse(target: str) -> tuple[str, int | None, str | None]:
    """Host, port and user of `ssh://[user@]host[:port]`. Raises UsageError."""
    target = re.sub(r"\[([^]:]*)\]", r"\1", target)  # as ssh writes a host of ProxyJump
    try:
        parts = urlsplit(target if "://" in target else f"ssh://{target}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{target}: the host or the port (1 to 65535) is wrong", EXPECTED) from error
    if parts.password is not None:
        raise UsageError("a target cannot contain a password", "log in with a key: ssh-keygen, ssh-copy-id")
    if not host or port == 0 or parts.path.strip("/") or parts.query:
        raise UsageError(f"{target!r} is not a target", EXPECTED)
    # urlsplit lowers the case of a host, which an alias in ~/.ssh/config may need.
    written = re.search(re.escape(host), parts.netloc, re.IGNORECASE)
    return written[0] if written else host, port, unquote(parts.username) if parts.username else None


def resolve(target: str, *, accept_new: bool = False, config: Path | None = None) -> Endpoint:
    """The endpoint of `ssh://[user@]host[:port]`, completed from ~/.ssh/config as `ssh` does it.

    What the target says wins over the file. Raises UsageError.
    """
    alias, port, user = parse(target)
    settings = config_of(alias, port, user, config)
    host = _one(settings, "hostname") or alias
    found_port, found_user = int(_one(settings, "port") or 22), user or _one(settings, "user") or _own_name()
    jump = _one(settings, "proxyjump")
    tokens = _tokens(alias, host, found_port, found_user, _one(settings, "hostkeyalias") or host, jump)

    def expanded(name: str, *default: str) -> list[str]:
        return [expand(text, tokens, name) for text in settings.get(name, default) if text.lower() != "none"]

    agent = settings.get("identityagent", ["SSH_AUTH_SOCK"])[0]
    if agent == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    elif agent.lower() == "none":
        agent = ""
    elif agent.startswith("$") and not agent.startswith("${"):
        agent = os.environ.get(agent[1:], "")
    hosts = [
        path
        for name in ("userknownhostsfile", "globalknownhostsfile")
        for value in settings.get(name, DEFAULTS[name])
        for path in _paths(value)
    ]
    command = _one(settings, "proxycommand")
    return Endpoint(
        alias=alias,
        host=host,
        port=found_port,
        user=found_user,
        identity_files=tuple(
            os.path.expanduser(path)
            for path in expanded("identityfile", *(f"~/.ssh/{name}" for name in KEY_NAMES))
        ),
        certificate_files=tuple(os.path.expanduser(path) for path in expanded("certificatefile")),
        identities_only=_one(settings, "identitiesonly") == "yes",
        identity_agent=os.path.expanduser(expand(agent, tokens, "identityagent")),
        proxy_jump=tuple(part.strip() for part in jump.split(",")) if jump else (),
        proxy_command=expand(command, tokens, "proxycommand", variables=False) if command else "",
        known_hosts=tuple(os.path.expanduser(expand(path, tokens, "userknownhostsfile")) for path in hosts),
        host_key_alias=_one(settings, "hostkeyalias"),
        # `no` would also take a key that has changed; that is never done here.
        accept_asked=accept_new,
        accept_new=accept_new
        or _one(settings, "stricthostkeychecking") in ("accept-new", "no", "off", "false"),
    )


DEFAULTS = {
    "userknownhostsfile": ["~/.ssh/known_hosts ~/.ssh/known_hosts2"],
    "globalknownhostsfile": ["/etc/ssh/ssh_known_hosts"],
}


def _one(settings: Mapping[str, list[str]], name: str) -> str:
    value = settings.get(name, [""])[0]
    return "" if value.lower() == "none" else value


def _paths(value: str) -> list[str]:
    """The files that a setting names. The parser has taken the quotes off one with a space in it."""
    whole = os.path.expanduser(value)
    if os.path.exists(whole):
        return [whole]
    return [os.path.expanduser(file) for file in value.split() if file.lower() != "none"]


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError(
            "the local user has no name", "name the user on the node: ssh://USER@HOST"
        ) from error


def _tokens(alias: str, host: str, port: int, user: str, key: str, jump: str) -> dict[str, str]:
    """What the TOKENS of ssh_config(5) stand for; those that name a connection that there is already have no
    value before there is one.
    """
    import hashlib
    import socket

    name = socket.gethostname()
    own, short = _own_name(), name.partition(".")[0]
    hashed = hashlib.sha1(f"{name}{host}{port}{user}{jump}".encode(), usedforsecurity=False).hexdigest()
    return {
        "%": "%",
        "C": hashed,
        "d": os.path.expanduser("~"),
        "h": host,
        "i": str(os.getuid()),
        "j": jump,
        "k": key,
        "L": short,
        "l": name,
        "n": alias,
        "p": str(port),
        "r": user,
        "u": own,
    }

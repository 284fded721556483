"""Where an ssh:// target is, and what ~/.ssh/config has to say about reaching it."""

from __future__ import annotations

import getpass
import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from taskrunner.errors import UsageError

EXPECTED = "expected ssh://user@host:port"
KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")
INCLUDE = re.compile(r"^\s*include(?:\s*=\s*|\s+)(.+?)\s*$", re.IGNORECASE)
BLOCK = re.compile(r"^\s*(host|match)(\s|=)", re.IGNORECASE)
DEPTH = 16
"""How deep Include may go, as in OpenSSH."""


class Endpoint(NamedTuple):
    """All that is needed to reach a host: names as in ssh_config(5)."""

    alias: str
    host: str
    port: int
    user: str
    identity_files: tuple[str, ...]
    identities_only: bool
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
    def known_as(self) -> str:
        """The name in known_hosts."""
        name = self.host_key_alias or self.host
        return name if self.port == 22 or self.host_key_alias else f"[{name}]:{self.port}"


def parse(target: str) -> tuple[str, int | None, str | None]:
    """Host, port and user of `ssh://[user@]host[:port]`. Raises UsageError."""
    try:
        parts = urlsplit(target if "://" in target else f"ssh://{target}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{target}: the host or the port (1 to 65535) is wrong", EXPECTED) from error
    if parts.password is not None:
        raise UsageError("a target cannot hold a password", "keys log in: ssh-keygen, ssh-copy-id")
    if not host or port == 0 or parts.path.strip("/") or parts.query:
        raise UsageError(f"{target!r} is not a target", EXPECTED)
    # urlsplit lowers the case of a host, which an alias in ~/.ssh/config may need.
    written = re.search(re.escape(host), parts.netloc, re.IGNORECASE)
    return written[0] if written else host, port, unquote(parts.username) if parts.username else None


def resolve(target: str, *, accept_new: bool = False, config: Path | None = None) -> Endpoint:
    """The endpoint of `ssh://[user@]host[:port]`, completed from ~/.ssh/config.

    What the target says wins over the file. Raises UsageError.
    """
    alias, port, user = parse(target)
    known = _lookup(alias, port, user, config or Path("~/.ssh/config").expanduser())
    files = known.get("identityfile") or [f"~/.ssh/{name}" for name in KEY_NAMES]
    hosts = _paths(known.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"))
    hosts += _paths(known.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts"))
    # Of the two, the one that comes first counts.
    proxies = [name for name in known if name in ("proxyjump", "proxycommand")]
    proxy = known[proxies[0]] if proxies and known[proxies[0]].lower() != "none" else ""
    jump = proxy if proxies[:1] == ["proxyjump"] else ""
    command = proxy if proxies[:1] == ["proxycommand"] else ""
    try:
        return Endpoint(
            alias=alias,
            host=known.get("hostname", alias),
            port=port or int(known.get("port", 22)),
            user=user or known.get("user") or _own_name(),
            identity_files=tuple(os.path.expanduser(file) for file in files if file != "none"),
            identities_only=known.get("identitiesonly", "no") == "yes",
            proxy_jump=tuple(part.strip() for part in jump.split(",")) if jump else (),
            proxy_command=command,
            known_hosts=tuple(hosts),
            host_key_alias=known.get("hostkeyalias", ""),
            # `no` would also take a key that has changed; that is never done here.
            accept_asked=accept_new,
            accept_new=accept_new or known.get("stricthostkeychecking", "") in ("accept-new", "no", "off"),
        )
    except ValueError as error:
        raise UsageError(f"~/.ssh/config: the port of {alias}: {error}") from error


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
        raise UsageError("this user has no name here", "name one for the node: ssh://USER@HOST") from error


def _lookup(alias: str, port: int | None, user: str | None, path: Path) -> Mapping[str, Any]:
    from paramiko.config import SSHConfig
    from paramiko.ssh_exception import ConfigParseError, CouldNotCanonicalize

    # What the target says comes first, and wins; it also counts for %p and %r.
    said = ["Host *", *([f"Port {port}"] if port else []), *([f"User {user}"] if user else [])]
    try:
        text = "\n".join([*said, *_with_includes(path, "Host *", 0)])
        return SSHConfig.from_text(text).lookup(alias)
    except (ConfigParseError, CouldNotCanonicalize, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _with_includes(path: Path, block: str, depth: int) -> list[str]:
    """The lines of a configuration file, those of the files that it includes in their place.

    `block` is the Host or Match line that they stand under. Raises UsageError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    lines = [block]
    for number, line in enumerate(text.splitlines(), 1):
        if BLOCK.match(line):
            if depth and block != "Host *":
                raise UsageError(
                    f"{path}:{number}: a Host or Match line in a file that is included under {block!r}",
                    "move the Include to the top of ~/.ssh/config",
                )
            lines.append(line)
            continue
        found = INCLUDE.match(line)
        if found is None or depth == DEPTH:
            lines.append(line)
            continue
        under = next((known.strip() for known in reversed(lines) if BLOCK.match(known)), block)
        for pattern in found[1].split():
            place = Path("~/.ssh").expanduser() / os.path.expanduser(pattern.strip('"'))
            for name in sorted(glob.glob(str(place))):
                lines += _with_includes(Path(name), under, depth + 1)
        lines.append(under)  # what follows stands where it stood
    return lines

"""Whether a host is who it should be: its key against the known_hosts files, which are only appended to."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from taskrunner.errors import HostKeyError
from taskrunner.transports.ssh import certificate

if TYPE_CHECKING:
    from paramiko import PKey
    from paramiko.hostkeys import HostKeyEntry

    from taskrunner.transports.ssh.endpoint import Endpoint

_appending = threading.Lock()
REVOKED, AUTHORITY = "@revoked", "@cert-authority"
"""Markers of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT."""
CERTIFICATE = "-cert-v01@openssh.com"
HOLDING = {*certificate.FIELDS, "rsa-sha2-512", "rsa-sha2-256"}
"""Algorithms whose keys certificates are read of."""


def algorithms(endpoint: Endpoint, preferred: tuple[str, ...]) -> list[str]:
    """The key algorithms to ask for, those first of which the host's key is known."""
    names = {key.get_name() for key in _known(endpoint)}
    if "ssh-rsa" in names:
        names |= {"rsa-sha2-512", "rsa-sha2-256"}
    ordered = sorted(preferred, key=lambda name: name not in names)
    # A certificate is of use only where its authority is known.
    certified = any(True for _ in _known(endpoint, AUTHORITY))
    return [name + CERTIFICATE for name in ordered if name in HOLDING] * certified + ordered


def check(endpoint: Endpoint, key: PKey) -> None:
    """Accept the host's key, or raise HostKeyError with what to do about it.

    A new key is taken, and remembered, only where the endpoint says so; a changed one never is.
    """
    shown = f"{_kind(key)} {fingerprint(key)}"
    name = endpoint.known_as
    revoked = list(_known(endpoint, REVOKED))
    if any(_same(key, other) for other in revoked):
        raise HostKeyError(f"{endpoint}: its host key is revoked: {shown}", "do not connect to it")
    authorities = list(_known(endpoint, AUTHORITY))
    if key.public_blob is not None and authorities:
        certificate.check(endpoint, bytes(key.public_blob.key_blob), authorities, revoked)
        return
    entries = list(_known(endpoint))
    if any(_same(key, other) for other in entries):
        return
    line = f"{name} {key.get_name()} {key.get_base64()}"
    file = endpoint.known_hosts[0] if endpoint.known_hosts else ""
    if entries:
        raise HostKeyError(
            f"{endpoint}: ITS HOST KEY HAS CHANGED, or the connection is intercepted: it is now {shown},"
            f" but {_where(endpoint)} has a different one for {name}",
            "if the node was recreated, compare the fingerprint with its own, then remove the old key:"
            f" ssh-keygen -f {file} -R '{name}'",
        )
    if not endpoint.accept_new:
        raise HostKeyError(
            f"{endpoint}: its host key is not known: {shown}",
            "compare it with the node's own (run there: ssh-keygen -lf /etc/ssh/ssh_host_"
            f"{_kind(key).lower()}_key.pub); then add this line to {file}\n"
            f"  {line}\n"
            "  or use --accept-new-host-keys to have it added",
        )
    if file and file != os.devnull:
        _append(Path(file), line)


def fingerprint(key: PKey) -> str:
    """As OpenSSH prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _kind(key: PKey) -> str:
    name = key.get_name()
    return "ECDSA" if name.startswith("ecdsa") else name.removeprefix("ssh-").upper()


def _same(one: PKey, other: PKey) -> bool:
    return one.asbytes() == other.asbytes()


def _where(endpoint: Endpoint) -> str:
    return " or ".join(file for file in endpoint.known_hosts if os.path.exists(file))


def _append(file: Path, line: str) -> None:
    with _appending:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            before = file.read_bytes() if file.exists() else b""
            with open(file, "a", encoding="utf-8") as known_hosts:
                known_hosts.write(("\n" if before and not before.endswith(b"\n") else "") + line + "\n")
        except OSError as error:
            raise HostKeyError(f"{file}: cannot save the host key: {error.strerror}") from error


def _known(endpoint: Endpoint, marker: str = "") -> Iterator[PKey]:
    """The keys that the files have for a host, with this marker."""
    for file in endpoint.known_hosts:
        for entry in _entries(file, _version(file), marker):
            if entry.key is not None and _matches(endpoint.known_as, entry.hostnames):
                yield entry.key


def _matches(name: str, patterns: list[str]) -> bool:
    """Whether one of the names of a line is this one: plain, hashed, or with wildcards; none denies it."""
    from paramiko import HostKeys

    matched = False
    for pattern in patterns:
        if pattern.startswith("|1|"):
            matched = matched or HostKeys.hash_host(name.lower(), pattern) == pattern
        elif fnmatchcase(name.lower(), pattern.lstrip("!").lower().replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched


def _version(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _entries(file: str, version: tuple[int, int], wanted: str) -> list[HostKeyEntry]:
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey
    from paramiko.ssh_exception import SSHException

    entries = []
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for number, line in enumerate(lines, 1):
        marker, _, rest = line.strip().partition(" ")
        if not marker or marker.startswith("#") or (marker if marker.startswith("@") else "") != wanted:
            continue
        if wanted:
            line = rest.strip()
        try:
            entry = HostKeyEntry.from_line(line, number)
        except (SSHException, InvalidHostKey, ValueError):
            continue
        if entry is not None:
            entries.append(entry)
    return entries

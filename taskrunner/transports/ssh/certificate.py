"""A host's certificate: signed by an authority that known_hosts names, for this host, and now.

The format is that of OpenSSH's PROTOCOL.certkeys.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from taskrunner.errors import HostKeyError

if TYPE_CHECKING:
    from paramiko import Message, PKey

    from taskrunner.transports.ssh.endpoint import Endpoint

FOR_HOSTS = 2
FIELDS = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
}
"""How many fields the public key has, by its algorithm."""


def check(endpoint: Endpoint, blob: bytes, authorities: Sequence[PKey], revoked: Sequence[PKey]) -> None:
    """Raises HostKeyError for a certificate that does not say who this host is."""
    from paramiko import Message, PKey
    from paramiko.ssh_exception import SSHException

    def wrong(why: str) -> HostKeyError:
        return HostKeyError(
            f"{endpoint}: its host certificate is not accepted: {why}",
            "ask the authority that signs for the host; ssh-keygen -L shows a certificate",
        )

    try:
        message = Message(blob)
        kind = message.get_text().removesuffix("-cert-v01@openssh.com")
        message.get_string()  # the nonce
        for _ in range(FIELDS[kind]):
            message.get_string()
        message.get_int64()  # the serial number
        purpose, name = message.get_int(), message.get_text()
        principals = _texts(Message(message.get_string()))
        after, before = message.get_int64(), message.get_int64()
        critical = message.get_string()
        message.get_string()  # extensions
        message.get_string()  # reserved
        signer = message.get_string()
        signed = blob[: len(blob) - len(message.get_remainder())]
        signature = message.get_string()
        authority = PKey.from_type_string(Message(signer).get_text(), signer)
    except (KeyError, ValueError, SSHException) as error:
        raise wrong(f"it cannot be read: {error}") from error
    if purpose != FOR_HOSTS:
        raise wrong("it is not a host certificate")
    if any(other.asbytes() == authority.asbytes() for other in revoked):
        raise wrong("its authority is revoked")
    if all(other.asbytes() != authority.asbytes() for other in authorities):
        raise wrong(f"{name!r} is signed by an authority that known_hosts does not list for {endpoint.name}")
    if not authority.verify_ssh_sig(signed, Message(signature)):
        raise wrong("its signature is wrong")
    if not after <= time.time() < before:
        raise wrong(f"{name!r} is expired or not yet valid; check the clock")
    if critical:
        raise wrong("it has an unsupported critical option")
    if principals and not any(
        fnmatchcase(endpoint.name.lower(), principal.lower()) for principal in principals
    ):
        raise wrong(f"it is for {', '.join(principals)}, not {endpoint.name}")


def _texts(message: Message) -> list[str]:
    texts = []
    while message.get_remainder():
        texts.append(message.get_text())
        if len(texts) > 1000:
            raise ValueError("truncated list")
    return texts

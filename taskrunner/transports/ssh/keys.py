"""Who we are: the agent's keys and those in files, in the order in which a host is asked to take them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from taskrunner.errors import TargetError

if TYPE_CHECKING:
    from paramiko import PKey, Transport

    from taskrunner.transports.ssh.endpoint import Endpoint

ATTEMPTS = 3
"""How often a passphrase may be mistyped, as with OpenSSH."""

_asking = threading.Lock()


class LockedKeyError(Exception):
    """A key has a passphrase that nobody has given."""


def authenticate(transport: Transport, endpoint: Endpoint) -> None:
    """Log in with the first key that the host takes. Raises TargetError with all that was tried."""
    from paramiko.ssh_exception import AuthenticationException, BadAuthenticationType, SSHException

    tried: list[str] = []
    for name, key in _offered(endpoint, tried):
        try:
            transport.auth_publickey(endpoint.user, key)
        except BadAuthenticationType as error:
            kinds = ", ".join(error.allowed_types)
            raise _refused(endpoint, tried, f"it takes no keys, only {kinds}") from error
        except AuthenticationException:
            tried.append(f"{name} (not taken)")
        except (SSHException, EOFError, OSError) as error:
            tried.append(f"{name} ({error or 'it hung up'})")
            raise _refused(endpoint, tried, "it ended the connection") from error
        if transport.is_authenticated():
            return
    raise _refused(endpoint, tried, "it takes none of our keys" if tried else "there is no key to offer")


def _refused(endpoint: Endpoint, tried: list[str], why: str) -> TargetError:
    hint = "name a key with IdentityFile in ~/.ssh/config, or add one to the agent: ssh-add FILE"
    return TargetError(
        f"{endpoint}: login as {endpoint.user} failed: {why}",
        f"tried {', '.join(tried)}; {hint}" if tried else hint,
    )


def _offered(endpoint: Endpoint, tried: list[str]) -> Iterator[tuple[str, PKey]]:
    """The agent's keys, then those of the files that it does not hold; `tried` takes what cannot be used."""
    from paramiko import Agent

    files = {path: _public(path) for path in endpoint.identity_files}
    agent = Agent()
    try:
        held = {key.asbytes(): key for key in agent.get_keys()}
        configured = [blob for blob in files.values() if blob in held]
        others = [] if endpoint.identities_only else [blob for blob in held if blob not in configured]
        for blob in [*configured, *others]:
            yield f"{held[blob].get_name()} of the agent", held[blob]
        for path, blob in files.items():
            if blob in held or not os.path.isfile(path):
                continue
            try:
                yield path, load(path)
            except LockedKeyError as error:
                tried.append(f"{path} ({error})")
    finally:
        agent.close()


def _public(path: str) -> bytes:
    """The public half that lies beside a key, b"" where there is none."""
    from paramiko.pkey import PublicBlob

    with contextlib.suppress(OSError, ValueError):
        return bytes(PublicBlob.from_file(path + ".pub").key_blob)
    return b""


@lru_cache(maxsize=64)
def _load(path: str, passphrase: str | None) -> PKey:
    from paramiko import PKey

    # It passes the passphrase on to functions that want bytes, whatever its types say.
    encoded: Any = passphrase and passphrase.encode()
    return PKey.from_path(path, encoded)


def load(path: str) -> PKey:
    """A key; its passphrase is asked for on a terminal, once. Raises LockedKeyError."""
    with _asking:
        try:
            return _load(path, _given.get(path))
        except TypeError:
            # So says the library when it needs a passphrase.
            return _unlock(path)
        except OSError as error:
            raise LockedKeyError(error.strerror or str(error)) from error
        except Exception as error:
            raise LockedKeyError(f"not a key: {error}") from error


_given: dict[str, str] = {}


def _unlock(path: str) -> PKey:
    if not (sys.stdin and sys.stdin.isatty()):
        raise LockedKeyError("it has a passphrase, and there is no terminal to ask for it; ssh-add it")
    from getpass import getpass

    for _ in range(ATTEMPTS):
        passphrase = getpass(f"Passphrase for {path}: ")
        with contextlib.suppress(ValueError):
            key = _load(path, passphrase)
            _given[path] = passphrase
            return key
    raise LockedKeyError("wrong passphrase")

"""Who we are: the agent's keys and those in files, in the order in which a host is asked to take them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from taskrunner import log
from taskrunner.errors import TargetError

if TYPE_CHECKING:
    from paramiko import PKey, Transport

    from taskrunner.transports.ssh.endpoint import Endpoint

ATTEMPTS = 3
"""How often a passphrase may be mistyped, as with OpenSSH."""

_asking = threading.Lock()
_connecting = threading.Lock()


class LockedKeyError(Exception):
    """A key has a passphrase that nobody has given."""


def authenticate(transport: Transport, endpoint: Endpoint) -> None:
    """Log in with the first key that the host takes, and with what it wants besides. Raises TargetError with
    all that was tried.
    """
    from paramiko.ssh_exception import AuthenticationException, BadAuthenticationType, SSHException

    tried: list[str] = []
    wanted: list[str] = []
    for name, key in _offered(endpoint, tried):
        log.debug("ssh.key_offered", host=endpoint.host, key=name)
        try:
            wanted = transport.auth_publickey(endpoint.user, key)
        except BadAuthenticationType as error:
            kinds = ", ".join(error.allowed_types)
            raise _refused(endpoint, tried, f"it accepts no keys, only {kinds}") from error
        except AuthenticationException:
            tried.append(f"{name} (rejected)")
        except (SSHException, EOFError, OSError) as error:
            tried.append(f"{name} ({error or 'connection closed'})")
            raise _refused(endpoint, tried, "it closed the connection") from error
        if transport.is_authenticated():
            return None
        if wanted and "publickey" not in wanted:
            return _second(transport, endpoint, name, wanted)
        if wanted:
            tried.append(f"{name} (accepted, but not sufficient)")
    why = "it requires more keys than it accepted" if wanted else "all offered keys were rejected"
    raise _refused(endpoint, tried, why if tried else "there is no key to offer")


def _second(transport: Transport, endpoint: Endpoint, name: str, wanted: list[str]) -> None:
    """Give what the host wants besides a key that it has taken: a person is asked. Raises TargetError."""
    from getpass import getpass

    from paramiko.ssh_exception import SSHException

    kinds = ", ".join(wanted)
    if not (sys.stdin and sys.stdin.isatty()):
        raise TargetError(
            f"{endpoint}: login as {endpoint.user} failed: it accepted {name}, but also requires {kinds}",
            "there is no terminal to ask for it; use a ProxyCommand that goes through an open ssh connection"
            " (ControlMaster)",
        )

    def answered(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        for text in filter(None, (title, instructions)):
            print(text, file=sys.stderr)
        asked = [(f"{endpoint}: {text}", shown) for text, shown in prompts]
        return [input(text) if shown else getpass(text) for text, shown in asked]

    try:
        with _asking:
            if "keyboard-interactive" in wanted:
                transport.auth_interactive(endpoint.user, answered)
            else:
                transport.auth_password(endpoint.user, getpass(f"{endpoint}: password: "), fallback=False)
    except (SSHException, EOFError, OSError) as error:
        raise TargetError(
            f"{endpoint}: login as {endpoint.user} failed: it accepted {name}, but not {kinds}: {error}"
        ) from error
    if not transport.is_authenticated():
        raise TargetError(
            f"{endpoint}: login as {endpoint.user} failed: {name} and {kinds} are not sufficient"
        )


def _refused(endpoint: Endpoint, tried: list[str], why: str) -> TargetError:
    hint = "name a key with IdentityFile in ~/.ssh/config, or add one to the agent: ssh-add FILE"
    return TargetError(
        f"{endpoint}: login as {endpoint.user} failed: {why}",
        f"tried {', '.join(tried)}; {hint}" if tried else hint,
    )


def _offered(endpoint: Endpoint, tried: list[str]) -> Iterator[tuple[str, PKey]]:
    """The agent's keys, then those of the files that it does not hold, each first with its certificate;
    `tried` takes what cannot be used.
    """
    files = {path: _public(path) for path in endpoint.identity_files}
    certificates = [path for path in endpoint.certificate_files if os.path.isfile(path)]
    certificates += [f"{path}-cert.pub" for path in files if os.path.isfile(f"{path}-cert.pub")]
    agent = _agent(endpoint.identity_agent)
    try:
        held = {key.asbytes(): key for key in agent.get_keys()} if agent is not None else {}
        configured = [blob for blob in files.values() if blob in held]
        others = [] if endpoint.identities_only else [blob for blob in held if blob not in configured]
        for blob in [*configured, *others]:
            yield from _certified(f"{held[blob].get_name()} of the agent", held[blob], certificates, tried)
        for path, blob in files.items():
            if blob in held or not os.path.isfile(path):
                continue
            try:
                yield from _certified(path, load(path), certificates, tried)
            except LockedKeyError as error:
                tried.append(f"{path} ({error})")
    finally:
        if agent is not None:
            agent.close()


def _certified(name: str, key: PKey, certificates: list[str], tried: list[str]) -> Iterator[tuple[str, PKey]]:
    """A key with each of the certificates that are for it, then alone."""
    from copy import copy

    from paramiko.ssh_exception import SSHException

    for path in dict.fromkeys(certificates):
        certified = copy(key)
        certified.public_blob = None
        try:
            certified.load_certificate(path)
        except (ValueError, OSError, SSHException) as error:
            if "not match" not in str(error):
                tried.append(f"{path} ({error})")
            continue
        yield f"{name} with {path}", certified
    yield name, key


def _agent(socket: str) -> Any:
    """The agent at a socket; None where there is none."""
    from paramiko import Agent

    if not socket:
        return None
    with _connecting:
        # The library knows the agent of the environment alone.
        before = os.environ.get("SSH_AUTH_SOCK")
        os.environ["SSH_AUTH_SOCK"] = socket
        try:
            return Agent()
        except OSError:
            return None
        finally:
            if before is None:
                del os.environ["SSH_AUTH_SOCK"]
            else:
                os.environ["SSH_AUTH_SOCK"] = before


def _public(path: str) -> bytes:
    """The public half that lies beside a key, b"" where there is none."""
    from paramiko.pkey import PublicBlob

    with contextlib.suppress(OSError, ValueError):
        return bytes(PublicBlob.from_file(path + ".pub").key_blob)
    return b""


def _load(path: str, passphrase: str | None) -> PKey:
    about = os.stat(path)
    return _loaded(path, passphrase, (about.st_ino, about.st_mtime_ns, about.st_size))


@lru_cache(maxsize=64)
def _loaded(path: str, passphrase: str | None, version: tuple[int, ...]) -> PKey:
    """The key in a version of a file: one that is replaced is another key."""
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

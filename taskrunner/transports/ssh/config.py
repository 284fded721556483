"""What ~/.ssh/config says of a host: as `ssh -G` tells it; where there is no ssh, a part of it, or an error.

ssh_config(5) has conditions, includes, tokens and more, which a second reading of it gets wrong.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from taskrunner.errors import UsageError

WITHIN = 10.0
"""Seconds: `Match exec` runs commands."""
NO_NAME = "No user exists for uid"
REPEATABLE = ("identityfile", "certificatefile")
UNSUPPORTED = {
    "knownhostscommand": "none",
    "proxyusefdpass": "no",
    "pkcs11provider": "none",
    "revokedhostkeys": "none",
    "bindaddress": "none",
    "bindinterface": "none",
    "addressfamily": "any",
}
"""Settings that change who is trusted or how a host is reached, and the value at which they do not."""
READ_HERE = {
    "hostname",
    "port",
    "user",
    "identityfile",
    "certificatefile",
    "identitiesonly",
    "identityagent",
    "proxyjump",
    "proxycommand",
    "userknownhostsfile",
    "globalknownhostsfile",
    "hostkeyalias",
    "stricthostkeychecking",
    "include",
    "host",
}
"""What is understood where there is no ssh. What has nothing to do with a login is passed over."""
OTHER = re.compile(
    "match|canonical.*|gssapi.*|pkcs11provider|knownhostscommand|securitykeyprovider|proxyusefdpass|tag|"
    "addressfamily|bindaddress|bindinterface|revokedhostkeys|hostkeyalgorithms|.*authentication|.*authentications"
)
"""What cannot be passed over there: it changes who is reached, or how."""
LINE = re.compile(r"^\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*?)\s*$")
DEPTH = 16
"""How deep Include may go, as in OpenSSH."""

Settings = dict[str, list[str]]


def config_of(alias: str, port: int | None, user: str | None, config: Path | None = None) -> Settings:
    """The settings for a host by their names in small letters, each with its values. Raises UsageError."""
    program = shutil.which("ssh")
    home = Path("~/.ssh/config").expanduser()
    settings = _asked(program, alias, port, user, config or _own(home)) if program else None
    if settings is None:
        settings = _read(alias, user, config or home)
    if port:
        settings["port"] = [str(port)]
    for name, harmless in UNSUPPORTED.items():
        if settings.get(name, [harmless])[0].lower() != harmless:
            raise UsageError(
                f"{config or home}: {name} {settings[name][0]} for {alias} is not supported",
                "remove it, or use a ProxyCommand that does the same",
            )
    return settings


def _own(home: Path) -> Path | None:
    """The file, where $HOME is another folder than ssh takes for the home; else None: ssh finds it."""
    theirs = _home_of_ssh()
    return None if theirs is not None and theirs / ".ssh" / "config" == home else home


def _home_of_ssh() -> Path | None:
    """The home in the password database, which alone counts for ssh; None for a user without an entry."""
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def _asked(
    program: str, alias: str, port: int | None, user: str | None, config: Path | None
) -> Settings | None:
    """What ssh says; None where it says nothing for a user without a name."""
    words = [program, "-G"]
    if config is not None:
        words += ["-F", str(config) if config.is_file() else "none"]
    words += ["-p", str(port)] if port else []
    words += ["-l", user] if user else []
    try:
        done = subprocess.run(
            [*words, "--", alias],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WITHIN,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"`ssh -G {alias}` does not finish", "check whether a `Match exec` in ~/.ssh/config hangs"
        ) from None
    except OSError:
        return None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "seudo-terminal" not in line]
        if any(NO_NAME in line for line in errors):
            return None
        raise UsageError(
            "; ".join(errors[:-1] or errors) or f"`ssh -G {alias}` fails", f"run `ssh -G {alias}` to see it"
        )
    settings: Settings = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        if name in REPEATABLE:
            settings.setdefault(name, []).append(value)
        else:
            settings[name] = [value]
    if config is not None:
        # Its defaults are in the home that ssh knows of.
        theirs = f"{_home_of_ssh()}/.ssh/"
        settings = {
            name: [text.replace(theirs, "~/.ssh/") for text in values] for name, values in settings.items()
        }
    return settings


def _read(alias: str, user: str | None, path: Path) -> Settings:
    """The settings as this reads them: `Host`, `Include` and READ_HERE. Raises UsageError for what would
    mean something else to ssh.
    """
    settings: Settings = {"user": [user]} if user else {}
    for where, name, value in _lines(path, alias, 0):
        if OTHER.fullmatch(name):
            raise UsageError(
                f"{where}: {name} is supported only where ssh is installed",
                "install the OpenSSH client, or remove the line",
            )
        if name in REPEATABLE:
            settings.setdefault(name, []).append(value)
        elif name in READ_HERE and not (name in ("proxyjump", "proxycommand") and settings.keys() & PROXIES):
            settings.setdefault(name, [value])
    port = settings.get("port", ["22"])[0]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"{path}: the port of {alias} is {port!r}, not a number from 1 to 65535")
    if "hostname" in settings:
        settings["hostname"] = [expand(settings["hostname"][0], {"h": alias, "%": "%"}, "hostname")]
    return settings


PROXIES = {"proxyjump", "proxycommand"}


def _lines(path: Path, alias: str, depth: int) -> Iterator[tuple[str, str, str]]:
    """The settings that count for a host, each with where it stands. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    counts = True
    for number, line in enumerate(text.splitlines(), 1):
        match = LINE.match(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        name, words = match[1].lower(), _words(match[2])
        if name == "host":
            counts = _meant(alias, words)
        elif name == "match" and [word.lower() for word in words] == ["all"]:
            counts = True
        elif name == "include":
            for pattern in words if counts and depth < DEPTH else ():
                place = Path("~/.ssh").expanduser() / os.path.expanduser(pattern)
                for file in sorted(glob.glob(str(place))):
                    yield from _lines(Path(file), alias, depth + 1)
        elif counts or name == "match":
            value = match[2] if name == "proxycommand" else " ".join(words)
            yield f"{path}:{number}", name, value


def _words(text: str) -> list[str]:
    """The words of a line: quoted ones are one; from a # on it is a comment (ssh_config(5))."""
    words = []
    for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', text):
        if bare.startswith("#"):
            break
        words.append(bare or quoted)
    return words


def _meant(alias: str, patterns: list[str]) -> bool:
    from fnmatch import fnmatchcase

    if any(fnmatchcase(alias, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(fnmatchcase(alias, pattern.replace("[", "[[]")) for pattern in patterns)


def expand(text: str, tokens: Mapping[str, str], name: str, *, variables: bool = True) -> str:
    """A text with its tokens (`%h`) and variables (`${HOME}`) replaced. Raises UsageError."""

    def token(match: re.Match[str]) -> str:
        if match[1] is not None:
            if match[1] not in os.environ:
                raise UsageError(f"~/.ssh/config: {name} {text}: ${match[1]} is not set in the environment")
            return os.environ[match[1]]
        if match[2] not in tokens:
            raise UsageError(f"~/.ssh/config: {name} {text}: %{match[2]} is not supported here")
        return tokens[match[2]]

    variable = r"\$\{(\w+)\}" if variables else r"(?!)()"
    return re.sub(variable + r"|%(.?)", token, text)

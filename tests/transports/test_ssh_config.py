"""Where a host is, as ~/.ssh/config says it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import UsageError
from taskrunner.errors import HostKeyError
from taskrunner.transports.ssh.endpoint import parse, resolve
from tests.sshd import Sshd, free_port, keygen
from tests.transports.reaching import reach, refused

MakeSshd = Callable[..., Sshd]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("ssh://host", ("host", None, None)),
        ("ssh://User.X@Host.Example:2222", ("Host.Example", 2222, "User.X")),
        ("ssh://u%40d@host/", ("host", None, "u@d")),
        ("ssh://[fe80::1]:22", ("fe80::1", 22, None)),
        ("host", ("host", None, None)),
    ],
)
def test_targets(target: str, expected: tuple[str, int, str]) -> None:
    assert parse(target) == expected


@pytest.mark.parametrize(
    "target", ["ssh://", "ssh://host:99999", "ssh://host/path", "ssh://u:secret@host", "ssh://[::"]
)
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(UsageError):
        parse(target)


def test_the_configuration_file(identity: Path) -> None:
    folder = identity.parent
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "gpu.conf").write_text(
        'Host gpu*\n  HostName 10.0.0.7\n  User ubuntu\n  Port 2200\n  IdentityFile "~/.ssh/gpu key"\n'
        "  IdentitiesOnly yes\n  UserKnownHostsFile ~/.ssh/gpu_hosts\n  ProxyJump a@bastion:222,second\n"
    )
    (folder / "config").write_text(
        "Include conf.d/*.conf\nHost old\n  ProxyCommand nc %h %p\nHost *\n  User me\n"
    )
    found = resolve("ssh://gpu1")
    assert (found.host, found.user, found.port, found.identities_only) == ("10.0.0.7", "ubuntu", 2200, True)
    assert found.identity_files == (f"{folder}/gpu key",)
    assert found.proxy_jump == ("a@bastion:222", "second")
    assert found.known_hosts[0] == f"{folder}/gpu_hosts"
    assert resolve("ssh://other@gpu1:1").user == "other"
    assert resolve("ssh://old").proxy_command == "nc old 22"
    assert resolve("ssh://x").user == "me"


def test_points_in_which_the_file_counts_as_for_openssh(
    identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = identity.parent / "config"
    config.write_text("Host n\n  ProxyCommand nc -x %r %h %p\n")
    assert resolve("ssh://alice@n:2222").proxy_command == "nc -x alice n 2222"
    config.write_text("Host foo\n  ProxyJump bastion\nHost *\n  ProxyCommand nc %h %p\n")
    assert (resolve("ssh://foo").proxy_jump, resolve("ssh://foo").proxy_command) == (("bastion",), "")
    assert resolve("ssh://bar").proxy_command == "nc bar 22"
    config.write_text("ProxyJump None\nUserKnownHostsFile none\n")
    assert resolve("ssh://foo").proxy_jump == ()
    # Lines after an Include stand where they stood, whatever the file ends with.
    (identity.parent / "more").write_text("Host only-this\n  User other\n")
    config.write_text("Include more\nPort 77\nHost x\n  Include plain\n  User me\n")
    (identity.parent / "plain").write_text("IdentitiesOnly yes\n")
    assert (resolve("ssh://y").port, resolve("ssh://only-this").user) == (77, "other")
    assert (resolve("ssh://x").user, resolve("ssh://x").identities_only) == ("me", True)
    assert not resolve("ssh://y").identities_only
    config.write_text("Host work\n  Include more\nHost *\n  User me\n")
    assert (resolve("ssh://only-this").user, resolve("ssh://work").user) == ("me", "me")
    config.write_text("Host n\n  Port 18022  # not 22\n  IdentityFile ${WHERE}/%n-%r\n  IdentityAgent none\n")
    monkeypatch.setenv("WHERE", "/keys")
    assert resolve("ssh://a@n")[2:8] == (18022, "a", ("/keys/n-a",), (), False, "")
    config.write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(UsageError, match="ProxyJump for a goes in a circle: a -> b -> a"):
        reach("ssh://a")


def test_a_key_is_not_taken_for_a_host_in_between_because_of_the_target(sshd: Sshd, identity: Path) -> None:
    (identity.parent / "config").write_text(
        f"Host behind\n  HostName 127.0.0.1\n  StrictHostKeyChecking no\n  ProxyJump {sshd.user}@127.0.0.1:{sshd.port}\n"
    )
    (identity.parent / "known_hosts").unlink()
    with pytest.raises(HostKeyError, match="not known"):
        reach("ssh://behind")


def test_an_alias_with_everything(sshd: Sshd, identity: Path) -> None:
    other = keygen(identity.parent / "a key")
    sshd.authorize(other)
    hosts = identity.parent / "hosts of mine"
    hosts.write_text(sshd.known_as())
    (identity.parent / "known_hosts").unlink()
    (identity.parent / "config").write_text(
        f"Host node\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n  IdentitiesOnly yes\n"
        f'  IdentityFile "{other}"\n  UserKnownHostsFile "{hosts}"\n'
    )
    reach("ssh://node")


def test_behind_another_host(make_sshd: MakeSshd, identity: Path) -> None:
    jump, node = make_sshd(), make_sshd()
    config = f"Host behind\n  HostName 127.0.0.1\n  Port {node.port}\n  User {node.user}\n"
    (identity.parent / "config").write_text(
        config + f"  ProxyJump {jump.user}@127.0.0.1:{jump.port}\nHost *\n  ProxyJump none\n"
    )
    reach("ssh://behind")
    assert len(jump.sessions()) > 0
    # A proxy command, and what it says when it cannot.
    (identity.parent / "config").write_text(
        config
        + f"  ProxyCommand ssh -F none -o UserKnownHostsFile={identity.parent}/known_hosts -i {identity}"
        f" -W %h:%p -p {jump.port} {jump.user}@127.0.0.1\n"
    )
    reach("ssh://behind")
    (identity.parent / "config").write_text(config + "  ProxyCommand echo no way through >&2; exit 1\n")
    said, hint = refused("ssh://behind", connect_timeout=2)
    assert "its ProxyCommand failed: no way through" in said
    assert "echo no way" in hint


def test_a_host_in_between_that_cannot_reach_it(sshd: Sshd, identity: Path) -> None:
    (identity.parent / "config").write_text(
        f"Host behind\n  HostName 127.0.0.1\n  Port {free_port()}\n  ProxyJump {sshd.user}@127.0.0.1:{sshd.port}\n"
    )
    assert "the jump host cannot reach it" in refused("ssh://behind")[0]


def test_what_ssh_does_not_take_is_told_with_its_line(identity: Path) -> None:
    (identity.parent / "config").write_text("Host n\n  Port 1\nMatch nonsense work\n  Port 2\n")
    with pytest.raises(UsageError, match="config line 3"):
        resolve("ssh://n")
    (identity.parent / "config").write_text("Host n\n  KnownHostsCommand /bin/echo\n")
    with pytest.raises(UsageError, match=r"knownhostscommand .* is not supported"):
        resolve("ssh://n")


def test_without_ssh_a_part_of_the_file_counts(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskrunner.transports.ssh.config.shutil.which", lambda _: None)
    config = identity.parent / "config"
    (identity.parent / "more").write_text("User other\n")
    config.write_text(
        "Host a* !ab\n  HostName %h.x  # there\n  Port = 18022  # not 22\n  Include more\n"
        '  IdentityFile "~/.ssh/a key"\n  Compression yes\nHost *\n  Port 1\n  ProxyCommand nc %h %p # it\n'
    )
    found = resolve("ssh://a1")
    assert (found.host, found.port, found.user) == ("a1.x", 18022, "other")
    assert found.identity_files == (str(identity.parent / "a key"),)
    assert found.proxy_command == "nc a1.x 18022 # it"
    assert (resolve("ssh://ab").host, resolve("ssh://ab").port) == ("ab", 1)
    config.write_text("Host n\n  Port 2\nMatch tagged work\n  Port 1\n")
    with pytest.raises(UsageError, match=r"config:3: match is supported only where ssh is installed"):
        resolve("ssh://n")
    config.write_text("Host n\n  Port x\n")
    with pytest.raises(UsageError, match="the port of n is 'x'"):
        resolve("ssh://n")

"""Keys, agents and certificates, of users and of hosts."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner.errors import HostKeyError
from tests.helpers import Process, wait_for
from tests.sshd import Sshd, keygen
from tests.terminal import Terminal
from tests.transports.reaching import reach, refused

Write = Callable[..., Path]
Cli = Callable[..., Process]


def test_the_agent(sshd: Sshd, identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket_path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))
        while not socket_path.exists():
            time.sleep(0.01)
        locked = keygen(tmp_path / "held", passphrase="correct horse")
        sshd.authorize(locked)
        environ = {**os.environ, "SSH_ASKPASS_REQUIRE": "force", "SSH_ASKPASS": str(tmp_path / "ask")}
        (tmp_path / "ask").write_text("#!/bin/sh\necho correct horse\n")
        (tmp_path / "ask").chmod(0o755)
        subprocess.run(["ssh-add", "-q", str(locked)], env=environ, check=True, stdin=subprocess.DEVNULL)
        reach(sshd.target)
        # Only the keys that are named: the agent's other ones are kept back.
        (identity.parent / "config").write_text("Host *\n  IdentitiesOnly yes\n")
        assert "all offered keys were rejected" in refused(sshd.target)[0]
        (identity.parent / "config").write_text(f"Host *\n  IdentitiesOnly yes\n  IdentityFile {locked}\n")
        reach(sshd.target)
    finally:
        agent.terminate()
        agent.wait()


def test_an_agent_that_the_file_names(sshd: Sshd, identity: Path, tmp_path: Path) -> None:
    socket_ = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_)], stdout=subprocess.DEVNULL)
    try:
        wait_for(socket_.exists)
        key = keygen(tmp_path / "of the agent")
        sshd.authorize(key)
        subprocess.run(
            ["ssh-add", "-q", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(socket_)}, check=True
        )
        key.unlink()
        base = "Host *\n  IdentityFile none\n"
        (identity.parent / "config").write_text(base)
        assert "there is no key to offer" in refused(sshd.target)[0]
        (identity.parent / "config").write_text(f"{base}  IdentityAgent {socket_}\n")
        reach(sshd.target)
        (identity.parent / "config").write_text(f"{base}  IdentityAgent none\n")
        assert "there is no key to offer" in refused(sshd.target)[0]
    finally:
        agent.terminate()
        agent.wait()


def test_a_passphrase_is_asked_for_on_a_terminal(
    sshd: Sshd, identity: Path, write: Write, terminal: Terminal, cli: Cli
) -> None:
    path = write({"id": "a", "commands": ["echo it ran"]})
    identity.unlink()
    sshd.authorize(keygen(identity.with_name("id_ecdsa"), "ecdsa", passphrase="open sesame"))
    done = cli(path, "--on", sshd.target)
    assert done.returncode == 3
    assert "it has a passphrase, and there is no terminal to ask for it; ssh-add it" in done.stderr
    home = f"HOME={identity.parent.parent}"
    terminal.type(f"{home} {sys.executable} -m taskrunner {path} --on {sshd.target}", "Enter")
    terminal.see("Passphrase for")
    terminal.type("wrong", "Enter")
    wait_for(lambda: terminal.screen().count("Passphrase for") == 2)
    terminal.type("open sesame", "Enter")
    terminal.see("1 ok, 0 skipped")


def test_a_key_file_that_is_replaced_is_another_key(sshd: Sshd, identity: Path) -> None:
    reach(sshd.target)
    for file in (identity, Path(f"{identity}.pub")):
        file.unlink()
    sshd.authorize(keygen(identity))
    reach(sshd.target)


def test_a_user_that_does_not_exist(sshd: Sshd) -> None:
    said, hint = refused(sshd.target.replace(f"{sshd.user}@", "nobody-of-that-name@"))
    assert "login as nobody-of-that-name failed" in said
    assert "id_ed25519" in hint


def test_a_second_factor_is_told(make_sshd: Callable[..., Sshd], identity: Path) -> None:
    server = make_sshd("AuthenticationMethods publickey,password", "PasswordAuthentication yes")
    (identity.parent / "known_hosts").write_text(server.known_as())
    said, hint = refused(server.target)
    assert "it accepted" in said
    assert "also requires password" in said
    assert "no terminal" in hint


def test_an_unknown_host_is_refused_with_its_fingerprint_and_the_line_to_add(
    sshd: Sshd, identity: Path, write: Write, cli: Cli
) -> None:
    known = identity.parent / "known_hosts"
    known.unlink()
    path = write({"id": "a", "commands": ["echo x"]})
    done = cli(path, "--on", sshd.target)
    assert done.returncode == 3
    shown = subprocess.run(
        ["ssh-keygen", "-lf", f"{sshd.host_key}.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert shown in done.stderr
    line = next(line.strip() for line in done.stderr.splitlines() if "ssh-ed25519" in line)
    known.write_text(line + "\n")
    assert cli(path, "--on", sshd.target).returncode == 0
    known.write_text("other ssh-ed25519 AAAA")
    assert cli(path, "--on", sshd.target, "--accept-new-host-keys").returncode == 0
    assert known.read_text().splitlines() == ["other ssh-ed25519 AAAA", line]
    assert stat.S_IMODE(identity.parent.stat().st_mode) == 0o700
    assert cli(path, "--on", sshd.target).returncode == 0


def test_a_changed_key_is_always_refused(sshd: Sshd, identity: Path, tmp_path: Path) -> None:
    other = keygen(tmp_path / "other")
    kind, blob = Path(f"{other}.pub").read_text().split()[:2]
    known = identity.parent / "known_hosts"
    before = f"[127.0.0.1]:{sshd.port} {kind} {blob}\n"
    known.write_text(before)
    for accept in (False, True):
        said, hint = refused(sshd.target, accept_new_host_keys=accept)
        assert "HAS CHANGED" in said
        assert "ssh-keygen -f" in hint
    # Known by a key of another kind only: that is a change, too.
    rsa = keygen(tmp_path / "rsa", "rsa")
    known.write_text(
        f"[127.0.0.1]:{sshd.port} " + " ".join(Path(f"{rsa}.pub").read_text().split()[:2]) + "\n"
    )
    assert "HAS CHANGED" in refused(sshd.target, accept_new_host_keys=True)[0]
    known.write_text("@revoked * " + sshd.known_as().split(" ", 1)[1])
    assert "revoked" in refused(sshd.target, accept_new_host_keys=True)[0]


def test_hashed_names_and_patterns(sshd: Sshd, identity: Path) -> None:
    known = identity.parent / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, stderr=subprocess.DEVNULL)
    assert "127.0.0.1" not in known.read_text()
    reach(sshd.target)
    known.write_text(sshd.known_as(f"[127.0.0.*]:{sshd.port}"))
    reach(sshd.target)
    known.write_text(sshd.known_as(f"![127.0.0.1]:{sshd.port},[127.*]:{sshd.port}"))
    with pytest.raises(HostKeyError, match="not known"):
        reach(sshd.target)


def signed(authority: Path, public: Path, *options: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options, str(public)],
        check=True,
        capture_output=True,
    )


def test_a_users_certificate(make_sshd: Callable[..., Sshd], identity: Path) -> None:
    authority = keygen(identity.parent / "authority")
    server = make_sshd(f"TrustedUserCAKeys {authority}.pub")
    (identity.parent / "known_hosts").write_text(server.known_as())
    other = keygen(identity.parent / "other")
    (identity.parent / "config").write_text(f"Host *\n  IdentitiesOnly yes\n  IdentityFile {other}\n")
    assert "all offered keys were rejected" in refused(server.target)[0]
    signed(authority, Path(f"{other}.pub"), "-n", server.user)
    reach(server.target)  # beside the key
    moved = (identity.parent / "other-cert.pub").rename(identity.parent / "elsewhere.pub")
    assert "all offered keys were rejected" in refused(server.target)[0]
    (identity.parent / "config").write_text(
        f"Host *\n  IdentitiesOnly yes\n  IdentityFile {other}\n  CertificateFile {moved}\n"
    )
    reach(server.target)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-n", "127.0.0.1,node"), ""),
        (("-n", "other"), "it is for other, not 127.0.0.1"),
        (("-n", "127.0.0.1", "-V", "20200101:20200102"), "expired or not yet valid"),
    ],
)
def test_an_authority_for_hosts(
    make_sshd: Callable[..., Sshd],
    identity: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
    kind: str,
) -> None:
    authority = keygen(identity.parent / "authority", kind)
    key = keygen(tmp_path / "host", kind)
    signed(authority, Path(f"{key}.pub"), "-h", *options)
    server = make_sshd(f"HostKey {key}\nHostCertificate {key}-cert.pub")
    known = identity.parent / "known_hosts"
    line = f"@cert-authority [127.0.0.1]:{server.port} " + Path(f"{authority}.pub").read_text()
    known.write_text(line)
    if said:
        with pytest.raises(HostKeyError, match=said):
            reach(server.target)
        return
    reach(server.target)
    known.write_text(line.replace("@cert-authority", "@revoked") + line)
    with pytest.raises(HostKeyError, match="revoked"):
        reach(server.target)
    known.write_text(f"@cert-authority * {Path(f'{keygen(tmp_path / chr(97))}.pub').read_text()}")
    with pytest.raises(HostKeyError, match="an authority that known_hosts does not list"):
        reach(server.target)

"""Reaching a host: ~/.ssh/config, keys, host keys, and a clear word for each way it can fail."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskrunner import TargetError, UsageError, run
from taskrunner.errors import HostKeyError
from taskrunner.transports.ssh.endpoint import parse, resolve
from taskrunner.transports.ssh.transport import SshTransport
from tests.conftest import Process, wait_for
from tests.relay import Relay
from tests.sshd import Sshd, free_port, keygen
from tests.terminal import Terminal
from tests.transports.test_bundle import pythons

Write = Callable[..., Path]
Cli = Callable[..., Process]
MakeSshd = Callable[..., Sshd]


def reach(target: str, **options: object) -> None:
    transport = SshTransport(target, **options)  # type: ignore[arg-type]
    try:
        transport.open()
        assert transport.infos(1) == []
    finally:
        transport.close()


def refused(target: str, **options: object) -> tuple[str, str]:
    with pytest.raises(TargetError) as caught:
        reach(target, **options)
    return str(caught.value), caught.value.hint


# --- where it is


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
    with pytest.raises(UsageError, match="the way to a leads through a: a -> b -> a"):
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
    assert "the host in between cannot reach it" in refused("ssh://behind")[0]


# --- who we are


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
        assert "none of our keys" in refused(sshd.target)[0]
        (identity.parent / "config").write_text(f"Host *\n  IdentitiesOnly yes\n  IdentityFile {locked}\n")
        reach(sshd.target)
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


def test_a_user_that_does_not_exist(sshd: Sshd) -> None:
    said, hint = refused(sshd.target.replace(f"{sshd.user}@", "nobody-of-that-name@"))
    assert "login as nobody-of-that-name failed" in said
    assert "id_ed25519" in hint


# --- who they are


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


# --- what can go wrong on the way


def test_a_name_that_is_not_known() -> None:
    assert "the name no-such-host.invalid is not known" in refused("ssh://no-such-host.invalid")[0]


def test_nothing_listens() -> None:
    said, hint = refused(f"ssh://127.0.0.1:{free_port()}")
    assert "refused: nothing listens there" in said
    assert "sshd" in hint


def test_no_answer(sshd: Sshd) -> None:
    relay = Relay(sshd.port)
    relay.swallow = True
    began = time.monotonic()
    assert "no answer within 1 s" in refused(f"ssh://127.0.0.1:{relay.port}", connect_timeout=1)[0]
    assert time.monotonic() - began < 5
    relay.close()


def test_something_else_answers() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        for _ in range(20):
            try:
                connection, _ = server.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()
            except OSError:
                return

    threading.Thread(target=answer, daemon=True).start()
    said, _ = refused(f"ssh://127.0.0.1:{server.getsockname()[1]}", connect_timeout=1)
    assert "is not SSH" in said
    server.close()


def test_a_server_that_is_busy_is_asked_again(make_sshd: MakeSshd) -> None:
    """MaxStartups makes sshd hang up on some of many connections that come at once."""
    server = make_sshd("MaxStartups 1:90:2")
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    time.sleep(0.3)
    threading.Timer(1.0, lambda: [end.close() for end in held]).start()
    reach(server.target)


def test_no_session(make_sshd: MakeSshd) -> None:
    said, hint = refused(make_sshd("MaxSessions 0").target)
    assert "refuses a session" in said
    assert "MaxSessions" in hint


# --- what can go wrong there


def test_no_python(sshd: Sshd) -> None:
    said, hint = refused(sshd.target, python="/no/such/python3")
    assert "there is no /no/such/python3 on the node" in said
    assert "install Python" in hint


def test_an_old_python(sshd: Sshd, tmp_path: Path) -> None:
    old = tmp_path / "old python"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 6); sys.version = \"3.6.8 x\"; exec(eval(sys.stdin.buffer.readline()))'\n"
    )
    old.chmod(0o755)
    assert "is 3.6.8; the engine needs 3.8 or later" in refused(sshd.target, python=str(old))[0]


def test_a_command_that_is_forced(make_sshd: MakeSshd) -> None:
    said, _ = refused(make_sshd("ForceCommand echo This account is not available; exit 3").target)
    assert "the engine does not start there: exit status 3: This account is not available" in said


def test_a_home_that_cannot_be_written(sshd: Sshd, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    said, hint = refused(sshd.target, state=str(blocked / "state"))
    assert "its state folder cannot be written" in said
    assert "`state`" in hint


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small tmpfs with these options."""
    assert os.geteuid() == 0, "mounting needs root"
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(made)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(sshd: Sshd, mounted: Callable[[str], Path]) -> None:
    said, hint = refused(sshd.target, state=str(mounted("size=40k") / "state"))
    assert "No space left on device" in said
    assert "make room" in hint


def test_a_state_folder_on_a_noexec_mount(sshd: Sshd, write: Write, mounted: Callable[[str], Path]) -> None:
    """Nothing is executed from there: the engine is read by Python, a step by bash."""
    path = write({"id": "a", "skip_if": "false", "commands": ["echo ran"]})
    transport = SshTransport(sshd.target, state=str(mounted("noexec") / "state"))
    assert run(path, on=transport).status == "ok"
    transport.close()


def test_a_login_shell_that_talks_and_a_banner(make_sshd: MakeSshd, write: Write, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("*** Authorized use only ***\n" * 50)
    server = make_sshd(f"Banner {tmp_path}/banner")
    (server.home / ".bashrc").write_text(
        "echo Welcome; printf 'no newline \\0 taskrunner-'; echo to stderr >&2; head -c 100000 /dev/zero\n"
    )
    path = write({"id": "a", "commands": ["echo ran"]})
    transport = SshTransport(server.target)
    done = run(path, on=transport)
    assert done.status == "ok"
    assert transport.read(done.run, "logs/001-a.log", 0) == b"ran\n"
    transport.close()


def test_a_login_shell_that_never_comes_to_the_point(sshd: Sshd) -> None:
    (sshd.home / ".bashrc").write_text("sleep 3\n")
    said, hint = refused(sshd.target, connect_timeout=1)
    assert "does not answer within 1 s of the login" in said
    assert "start file" in hint


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_every_python_that_a_node_may_have(python: str, sshd: Sshd, write: Write) -> None:
    path = write({"id": "a", "commands": ["echo $((40 + 2))"]}, {"id": "b", "commands": ["exit 3"]})
    transport = SshTransport(sshd.target, python=python)
    done = run(path, on=transport)
    assert (done.ok, done.failed) == (1, 1)
    assert transport.read(done.run, "logs/001-a.log", 0) == b"42\n"
    transport.close()


@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_a_clock_that_is_a_day_off(offset: str, make_sshd: MakeSshd, write: Write, tmp_path: Path) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    home, state = tmp_path / "sshd0" / "node home", tmp_path / "sshd0" / "node-state"
    server = make_sshd(env=f'HOME="{home}" TASKRUNNER_HOME="{state}" LD_PRELOAD={library} FAKETIME={offset}')
    path = write({"id": "a", "commands": ["sleep 0.3; date +%s > now"]}, {"id": "b", "commands": ["true"]})
    times: list[float] = []
    transport = SshTransport(server.target)
    done = run(path, on=transport, on_event=lambda event: times.append(event["time"]))
    assert done.status == "ok"
    assert abs(abs(transport.skew) - 86400) < 10
    assert abs(int((server.home / "now").read_text()) - time.time()) > 80000
    # What is told of it is told in our time, and durations are not touched.
    assert all(abs(when - time.time()) < 30 for when in times)
    assert 0.3 <= done.duration < 10
    assert run(path, on=transport).skipped == 2
    transport.close()


# --- other users


@pytest.fixture
def account(tmp_path: Path, identity: Path) -> Iterator[Callable[..., Sshd]]:
    """A server, and a user of its own with this login shell, who may or may not sudo."""
    assert os.geteuid() == 0, "making users needs root"
    made: list[tuple[str, Sshd]] = []
    sudoers = Path("/etc/sudoers.d")

    def make(shell: str = "/bin/bash", sudo: bool = False) -> Sshd:
        name = f"trtest{os.getpid()}x{len(made)}"
        folder = Path("/tmp") / f"{name} files"
        folder.mkdir(mode=0o755)
        server = Sshd(folder / "sshd", env="LANG=C")
        home = folder / "elsewhere" / name
        home.parent.mkdir()
        subprocess.run(["useradd", "-m", "-d", str(home), "-s", shell, "-p", "*", name], check=True)
        made.append((name, server))
        if sudo:
            (sudoers / name).write_text(f"{name} ALL=(ALL) NOPASSWD: ALL\n")
        server.user, server.home = name, home
        server.state = home / ".local/state/taskrunner"
        server.authorize(identity)
        server.authorized.chmod(0o644)
        server.start()
        (identity.parent / "known_hosts").write_text(server.known_as())
        return server

    yield make
    for name, server in made:
        server.stop()
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)
        time.sleep(0.1)
        subprocess.run(["userdel", "-f", name], check=True, stderr=subprocess.DEVNULL)
        (sudoers / name).unlink(missing_ok=True)
        shutil.rmtree(server.folder.parent)


@pytest.mark.parametrize("shell", ["dash", "fish", "bash"])
def test_login_shells_and_another_home(shell: str, account: Callable[..., Sshd], write: Write) -> None:
    server = account(str(shutil.which(shell)))
    path = write({"id": "a", "commands": ["pwd; [[ -n $BASH_VERSION ]] && echo bash"]})
    transport = SshTransport(server.target)
    done = run(path, on=transport)
    assert transport.read(done.run, "logs/001-a.log", 0) == f"{server.home}\nbash\n".encode()
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700
    transport.close()


def test_run_as_with_and_without_sudo(account: Callable[..., Sshd], write: Write) -> None:
    path = write({"id": "a", "run_as": "root", "commands": ["id -un; echo <<KEY>> | wc -c"]},
                 variables={"KEY": {"secret": True, "default": "hunter2hunter2"}})  # fmt: skip
    server = account(sudo=True)
    transport = SshTransport(server.target)
    done = run(path, on=transport)
    assert done.status == "ok"
    assert transport.read(done.run, "logs/001-a.log", 0) == b"root\n15\n"
    Path("/etc/sudoers.d", server.user).unlink()
    refused = run(path, on=transport, reset=True)
    assert refused.status == "failed"
    assert "a password is required" in "".join(refused.failures[0]["tail"])
    transport.close()


def test_cancelling_what_runs_as_another_user(account: Callable[..., Sshd], write: Write) -> None:
    from taskrunner import start

    server = account(sudo=True)
    path = write({"id": "a", "run_as": "root", "commands": ["echo $$; sleep 600 & sleep 600"]})
    with start(path, on=server.target) as begun:
        pid = 0
        for event in begun.events(output=True):
            if event["type"] == "output" and not pid:
                pid = int(event["text"])
                os.kill(pid, 0)
                begun.cancel()
        assert event["type"] == "run.finished"
        assert event["status"] == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    begun.transport.close()


def test_what_ssh_does_not_take_is_told_with_its_line(identity: Path) -> None:
    (identity.parent / "config").write_text("Host n\n  Port 1\nMatch nonsense work\n  Port 2\n")
    with pytest.raises(UsageError, match="config line 3"):
        resolve("ssh://n")
    (identity.parent / "config").write_text("Host n\n  KnownHostsCommand /bin/echo\n")
    with pytest.raises(UsageError, match=r"knownhostscommand .* is not understood here"):
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
    with pytest.raises(UsageError, match=r"config:3: match is understood where ssh is installed only"):
        resolve("ssh://n")
    config.write_text("Host n\n  Port x\n")
    with pytest.raises(UsageError, match="the port of n is 'x'"):
        resolve("ssh://n")


def signed(authority: Path, public: Path, *options: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options, str(public)],
        check=True, capture_output=True,
    )  # fmt: skip


def test_a_users_certificate(make_sshd: Callable[..., Sshd], identity: Path) -> None:
    authority = keygen(identity.parent / "authority")
    server = make_sshd(f"TrustedUserCAKeys {authority}.pub")
    (identity.parent / "known_hosts").write_text(server.known_as())
    other = keygen(identity.parent / "other")
    (identity.parent / "config").write_text(f"Host *\n  IdentitiesOnly yes\n  IdentityFile {other}\n")
    assert "it takes none of our keys" in refused(server.target)[0]
    signed(authority, Path(f"{other}.pub"), "-n", server.user)
    reach(server.target)  # beside the key
    moved = (identity.parent / "other-cert.pub").rename(identity.parent / "elsewhere.pub")
    assert "it takes none of our keys" in refused(server.target)[0]
    (identity.parent / "config").write_text(
        f"Host *\n  IdentitiesOnly yes\n  IdentityFile {other}\n  CertificateFile {moved}\n"
    )
    reach(server.target)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-n", "127.0.0.1,node"), ""),
        (("-n", "other"), "it is for other, not 127.0.0.1"),
        (("-n", "127.0.0.1", "-V", "20200101:20200102"), "not valid now"),
    ],
)
def test_an_authority_for_hosts(
    make_sshd: Callable[..., Sshd], identity: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    authority = keygen(identity.parent / "authority")
    key = keygen(tmp_path / "host")
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
    with pytest.raises(HostKeyError, match="an authority that known_hosts does not name"):
        reach(server.target)


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


def test_a_second_factor_is_told(make_sshd: Callable[..., Sshd], identity: Path) -> None:
    server = make_sshd("AuthenticationMethods publickey,password", "PasswordAuthentication yes")
    (identity.parent / "known_hosts").write_text(server.known_as())
    said, hint = refused(server.target)
    assert "it has taken" in said
    assert "wants password besides" in said
    assert "no terminal" in hint


def test_what_a_server_says_is_told_and_it_is_not_asked_again(identity: Path) -> None:
    asked = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                asked.append(client)
                client.sendall(b"Not allowed at this time\r\n")
                client.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        said, _ = refused(f"ssh://127.0.0.1:{listener.getsockname()[1]}")
        assert "it says: Not allowed at this time" in said
        assert len(asked) == 1
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)

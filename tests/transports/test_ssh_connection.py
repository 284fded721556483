"""A clear word for each way in which a host cannot be reached."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.relay import Relay
from tests.sshd import Sshd, free_port
from tests.transports.reaching import reach, refused

MakeSshd = Callable[..., Sshd]


def test_a_name_that_is_not_known() -> None:
    assert "cannot resolve the name no-such-host.invalid" in refused("ssh://no-such-host.invalid")[0]


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
    assert "is not an SSH server" in said
    server.close()


def test_a_server_that_is_busy_is_asked_again(make_sshd: MakeSshd) -> None:
    """MaxStartups makes sshd hang up on some of many connections that come at once."""
    server = make_sshd("MaxStartups 1:90:2")
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    time.sleep(0.3)
    for end in held:
        threading.Timer(1.0, end.close).start()
    reach(server.target)


def test_no_session(make_sshd: MakeSshd) -> None:
    said, hint = refused(make_sshd("MaxSessions 0").target)
    assert "refuses a session" in said
    assert "MaxSessions" in hint


def test_a_command_that_is_forced(make_sshd: MakeSshd) -> None:
    said, _ = refused(make_sshd("ForceCommand echo This account is not available; exit 3").target)
    assert "the engine failed to start: exit status 3: This account is not available" in said


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

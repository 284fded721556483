from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import end_what_is_left
from tests.sshd import Sshd


@pytest.fixture
def nodes(make_sshd: Callable[..., Sshd], identity: Path) -> Iterator[Sshd]:
    """nodes.toml with node1, node2 and node3, each with a state folder of its own, in groups a and b."""
    server = make_sshd(address="0.0.0.0")
    addresses = [f"127.0.0.{number}" for number in (2, 3, 4)]
    (identity.parent / "known_hosts").write_text(
        server.known_as(*(f"[{ip}]:{server.port}" for ip in addresses))
    )
    lines = [f'[defaults]\nuser = "{server.user}"\nport = {server.port}\n']
    for number, address in enumerate(addresses, 1):
        lines.append(
            f'[nodes.node{number}]\naddress = "{address}"\nstate = "{server.state}/{number}"\n'
            f'private = "172.31.0.{number}"\nvariables = {{ N = {number} }}\n'
        )
    lines.append('[groups.pair]\nnodes = ["node1", "node2"]\n')
    Path("nodes.toml").write_text("\n".join(lines))
    yield server
    left = [end_what_is_left(f"{server.state}/{number}") for number in (1, 2, 3)]
    assert left == [{}, {}, {}]

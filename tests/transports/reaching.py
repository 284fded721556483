"""A connection, and what is said when there is none."""

from __future__ import annotations

import pytest

from taskrunner import TargetError
from taskrunner.transports.ssh.transport import SshTransport


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

"""The engine as one file that a node's own Python (3.8 or later) runs, without this package; with it what
serves and measures there (taskrunner/inference), which the Python of vLLM runs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from taskrunner import _version, engine, inference
from taskrunner.errors import TargetError
from taskrunner.inference.results.schema import SCHEMA

ENTRY = """import sys

from engine.main import main

sys.exit(main(sys.argv[1:]))
"""
VERSION_FILE = Path(str(_version.__file__))
EPOCH = (1980, 1, 1, 0, 0, 0)
NOT_SHIPPED = {SCHEMA, *(SCHEMA.with_name(name) for name in ("model.py", "read.py"))}
"""What reads results: nodes write them alone."""


def engine_zip() -> bytes:
    """The engine as a zip application (see zipapp): `python3 engine.pyz run RUN_DIR`.

    The same code gives the same bytes, so that a node which has them need not get them again.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _add(archive, "__main__.py", ENTRY.encode())
        _add(archive, VERSION_FILE.name, VERSION_FILE.read_bytes())  # for the results of measurements
        for package in (engine, inference):
            folder = Path(str(package.__file__)).parent
            for path in sorted(folder.rglob("*")):
                if path.suffix in (".py", ".json") and path not in NOT_SHIPPED:
                    _add(archive, f"{folder.name}/{path.relative_to(folder)}", path.read_bytes())
    return buffer.getvalue()


@cache
def shipped() -> tuple[bytes, str]:
    """The engine as it goes to nodes, and the digest that it is known by there."""
    data = engine_zip()
    return data, hashlib.sha256(data).hexdigest()[:32]


def refused(name: str, python: str, answer: dict[str, Any]) -> TargetError:
    """Why the engine cannot begin on a node, in the words of bootstrap.py."""
    if "python" in answer:
        return TargetError(
            f"{name}: its {python} is {answer['python']}; the engine needs 3.8 or later",
            "set another one: `python` in the nodes file",
        )
    if "user" in answer:
        return TargetError(
            f"{name}: there is no user {answer['user']} on the node",
            "set `user` in the nodes file or in the URL",
        )
    full = answer.get("errno") in (errno.ENOSPC, errno.EDQUOT)
    return TargetError(
        f"{name}: cannot use its state folder: {answer.get('path', '')}: {answer.get('error', '')}",
        "free up space there"
        if full
        else "choose another one that this user can write to: `state` in the nodes file",
    )


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, EPOCH), data)

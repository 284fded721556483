"""The engine as one file that a node's own Python (3.8 or later) runs, without this package."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from taskrunner import engine

ENTRY = """import sys

from engine.main import main

sys.exit(main(sys.argv[1:]))
"""
EPOCH = (1980, 1, 1, 0, 0, 0)


def engine_zip() -> bytes:
    """The engine as a zip application (see zipapp): `python3 engine.pyz run RUN_DIR`.

    The same code gives the same bytes, so that a node which has them need not get them again.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _add(archive, "__main__.py", ENTRY.encode())
        for path in sorted(Path(engine.__file__).parent.glob("*.py")):
            _add(archive, f"engine/{path.name}", path.read_bytes())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, EPOCH), data)

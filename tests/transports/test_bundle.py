"""The engine as the zip that is shipped to nodes, on every Python that a node may have."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrunner import LocalTransport, attach, compile
from taskrunner.engine.store import paths
from taskrunner.runs import new_id
from taskrunner.transports.bundle import engine_zip
from tests.helpers import completed, wait_for

PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"


def pythons() -> dict[str, str]:
    """Each Python from 3.8 to 3.13 that this machine has, by its version."""
    found: dict[str, str] = {}
    candidates = [str(path) for path in PYENV.glob("3.*/bin/python3")]
    candidates += [path for minor in range(8, 14) if (path := shutil.which(f"python3.{minor}"))]
    for path in [*candidates, shutil.which("python3") or ""]:
        done = completed([path, "-V"])
        version = re.search(r"3\.(\d+)", done.stdout)
        if done.returncode == 0 and version and 8 <= int(version[1]) <= 13:
            found.setdefault(version[0], path)
    return found


def test_the_same_code_gives_the_same_bytes() -> None:
    assert engine_zip() == engine_zip()
    assert len(engine_zip()) < 700_000


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
@pytest.mark.parametrize("verb", ["run", "start"])
def test_runs_a_plan_without_this_package(
    python: str, verb: str, write: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    zip_file = tmp_path / "engine.pyz"
    zip_file.write_bytes(engine_zip())
    path = write(
        {"id": "a", "skip_if": "false", "commands": ["echo <<T>>", "cat <<E > out", "hello", "E"]},
        {"id": "b", "timeout": 0.3, "retries": {"attempts": 2, "delay": 0.01}, "commands": ["sleep 9"]},
        {"id": "c", "always": True, "commands": ["echo c"]},
        variables={"T": {"secret": True, "default": "hunter2hunter2"}},
    )
    run = new_id()
    directory = Path(paths.run_dir(str(home), run))
    directory.mkdir(parents=True)
    (directory / paths.PLAN).write_text(json.dumps({**compile(path), "run": run}))
    engine = [python, "-I", "-S", str(zip_file)]
    done = completed([*engine, verb, str(directory)], timeout=30)
    assert done.stderr == ""
    if verb == "run":
        assert done.returncode == 1
    else:
        assert done.returncode == 0
        # A launcher that is called twice starts one run.
        assert subprocess.run([*engine, verb, str(directory)], check=False).returncode == 0

    def status() -> str:
        return subprocess.run(
            [*engine, "status", str(directory)], capture_output=True, text=True, check=True
        ).stdout

    wait_for(lambda: status() == "finished failed\n")
    with attach(run, LocalTransport(home)) as found:
        ends = {
            event["step"]: event["status"] for event in found.so_far() if event["type"] == "step.finished"
        }
        assert ends == {"a": "ok", "b": "failed", "c": "ok"}
        assert found.log("a") == b"***\n"
    assert Path("out").read_text() == "hello\n"
    assert "hunter2" not in "".join(path.read_text() for path in directory.rglob("*") if path.is_file())


def test_usage(tmp_path: Path) -> None:
    zip_file = tmp_path / "engine.pyz"
    zip_file.write_bytes(engine_zip())
    for args in ([], ["nonsense", "x"], ["run"]):
        done = completed(["python3", str(zip_file), *args])
        assert done.returncode == 2
        assert "RUN_DIR" in done.stderr
    gone = completed(["python3", str(zip_file), "run", str(tmp_path)])
    assert gone.returncode == 70
    assert "no complete plan" in gone.stderr


def test_what_is_shipped_imports_nothing_that_is_not(tmp_path: Path) -> None:
    """On a node, `inference` is not below `taskrunner`."""
    import io
    import zipfile

    zipfile.ZipFile(io.BytesIO(engine_zip())).extractall(tmp_path)
    modules = [
        ".".join(path.relative_to(tmp_path).with_suffix("").parts)
        for path in tmp_path.rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    ]
    script = "import importlib, sys; sys.modules['taskrunner'] = None; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = completed([sys.executable, "-c", script, *modules], cwd=tmp_path)
    assert done.returncode == 0, done.stderr

"""Results on their way to MLflow. Each is on disk until it is there whole, and is logged once, whoever is
killed when.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskrunner.engine.run.masking import without_passwords
from taskrunner.engine.store import fileio
from taskrunner.errors import StateError, TargetError, UsageError
from taskrunner.tracking import store
from taskrunner.tracking.record import Record, record_of

KEY = "taskrunner.key"
OF_THE_RECORD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
"""Codes of MLflow's errors that say what is wrong with what is sent, and not with who sends or takes it."""


class Sent(NamedTuple):
    """What became of a spooled result: `run` is its id in MLflow, or `problem` says why it stays here."""

    name: str
    run: str
    problem: str


SENT = ".sent"
"""Marks the name of what was sent and is not removed yet."""


class Refused(TargetError):
    """The server does not take this record, whenever it is sent."""


def spool(
    path: str | Path, to: str, experiment: str, files: Sequence[str | Path] = (), wished: bool = True
) -> str:
    """Keep a result, and files that belong to it, to be sent `to` a tracking URI; its key.

    For one that is kept already, where it goes is what was `wished` last. Raises UsageError, StateError.
    """
    record = record_of(path, experiment)
    place = os.path.join(store.folder(), "pending", record.key)
    if os.path.isdir(place):
        _changed(Path(place), to if wished else "", experiment, files)
        return record.key
    temporary = fileio.temporary_name(place)
    try:
        fileio.private_folder(os.path.join(temporary, "files"))
        shutil.copyfile(path, os.path.join(temporary, "files", "result.json"))
        for file in files:
            shutil.copy(file, os.path.join(temporary, "files"))
        destination = json.dumps({"to": to, "experiment": record.experiment})
        fileio.write_atomic(os.path.join(temporary, "about.json"), destination.encode())
        with contextlib.suppress(OSError):
            os.rename(temporary, place)  # else another process was faster
    except OSError as error:
        raise StateError(f"{error.filename}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record.key


def _changed(place: Path, to: str, experiment: str, files: Sequence[str | Path]) -> None:
    try:
        with alone():
            destination = _about(place)
            wish = {
                "to": to or destination.get("to", ""),
                "experiment": experiment or destination.get("experiment", ""),
            }
            for file in files:
                shutil.copy(file, place / "files")
            fileio.write_atomic(str(place / "about.json"), json.dumps(wish).encode())
    except OSError as error:
        if place.is_dir():  # else it has been sent just now
            raise StateError(f"{error.filename}: {error.strerror}") from error


def _about(place: Path) -> dict[str, str]:
    try:
        document = json.loads((place / "about.json").read_text())
    except (OSError, ValueError):
        return {}
    return (
        {name: str(document[name]) for name in ("to", "experiment") if name in document}
        if isinstance(document, dict)
        else {}
    )


def pending() -> list[str]:
    """The keys of what is not sent yet, the oldest first."""
    place = Path(store.folder()) / "pending"
    entries = [entry for entry in place.glob("*") if not entry.name.endswith(".tmp")]
    return [entry.name for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime)]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One process sends at a time, and the next one says that it waits; the kernel frees the lock with its
    holder.
    """
    with open(os.path.join(store.folder(), "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another `taskrunner mlflow` is sending results: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync(only: str = "", each: Callable[[Sent], object] | None = None) -> list[Sent]:
    """Send what is pending, each once. What cannot be reached keeps its results here. Raises UsageError."""
    done: list[Sent] = []
    deaf: dict[str, str] = {}
    with alone():
        _remove_sent()
        for key in pending():
            if only and key != only:
                continue
            place = Path(store.folder()) / "pending" / key
            destination = _about(place)
            name, to = key[:12], destination.get("to", "")
            try:
                record = record_of(place / "files" / "result.json", destination.get("experiment", ""))
                name = record.name
                if to in deaf:
                    raise TargetError(deaf[to])
                sent = Sent(name, send(record, to or store.uri(), place / "files"), "")
                # In one move: of what is half removed nobody could tell that it was sent.
                os.rename(place, fileio.temporary_name(f"{place}{SENT}"))
            except (Refused, UsageError) as error:
                # This one alone: the others are sent.
                sent = Sent(name, "", str(error))
            except TargetError as error:
                deaf[to] = str(error)
                sent = Sent(name, "", str(error))
            done.append(sent)
            if each is not None:
                each(sent)
        _remove_sent()
    return done


def _remove_sent() -> None:
    for place in (Path(store.folder()) / "pending").glob(f"*{SENT}.*.tmp"):
        shutil.rmtree(place, ignore_errors=True)


def send(record: Record, to: str, files: Path) -> str:
    """Log a record; the run's id. What was begun before and cut off is gone on with. Raises TargetError."""
    store.ready()
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    try:
        client = store.client(to)
        experiment = experiment_of(client, record.experiment)
        wanted = f"tags.`{KEY}` = '{record.key}'"
        existing = client.search_runs([experiment], wanted, max_results=1)
        if existing and existing[0].info.status == "FINISHED":
            return str(existing[0].info.run_id)
        tags = {KEY: record.key}
        run = existing[0] if existing else client.create_run(experiment, record.began, tags, record.name)
        id = str(run.info.run_id)
        # Each of these does the same when it is done again.
        client.log_batch(
            id,
            [Metric(name, value, record.ended, 0) for name, value in record.metrics.items()],
            [Param(*pair) for pair in record.parameters.items()],
            [RunTag(*pair) for pair in record.tags.items()],
        )
        client.log_artifacts(id, str(files))
        client.set_terminated(id, "FINISHED", record.ended)
    except (MlflowException, OSError) as error:
        refused = getattr(error, "error_code", "") in OF_THE_RECORD
        raise (Refused if refused else TargetError)(
            f"{without_passwords(to)}: {store.short(error)}", "kept here; `taskrunner mlflow sync` sends it"
        ) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in (
            "sqlalchemy",
            "botocore",
            "requests",
            "urllib3",
            "sagemaker_mlflow",
        ):
            raise
        raise TargetError(
            f"{without_passwords(to)}: {store.short(error)}", "kept here; `taskrunner mlflow sync` sends it"
        ) from error
    return id


def experiment_of(client: Any, name: str) -> str:
    """The id of an experiment, which is made where it is not there."""
    from mlflow.exceptions import MlflowException

    existing = client.get_experiment_by_name(name)
    if existing is None:
        try:
            place = None
            if client.tracking_uri.startswith("sqlite:"):
                place = f"file://{os.path.dirname(client.tracking_uri.removeprefix('sqlite:///'))}/artifacts"
            return str(client.create_experiment(name, place))
        except MlflowException:
            existing = client.get_experiment_by_name(name)  # another process was faster
            if existing is None:
                raise
    return str(existing.experiment_id)

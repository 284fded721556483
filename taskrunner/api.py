"""The library: load and check a task file, or build one in Python; run it and follow it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from taskrunner import history, log, packs, runs
from taskrunner.errors import Problem, TaskFileError, UsageError, closest
from taskrunner.model import checks
from taskrunner.model.compile import Selection, compile_plan
from taskrunner.model.document import Document
from taskrunner.model.project import Project
from taskrunner.model.variables import declared, environment_of_nodes, text_of
from taskrunner.transports import Transport, connect
from taskrunner.transports.local import LocalTransport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from taskrunner.engine.plan import Plan
    from taskrunner.events import Event
    from taskrunner.model.models import TaskFile

Value = str | int | float | bool


class LoadedFile:
    """A task file that has been read: where it is, and its JSON with positions."""

    def __init__(self, document: Document, path: Path | None) -> None:
        self.document = document
        self.path = path

    @property
    def model(self) -> TaskFile:
        """The file as typed objects. Raises TaskFileError when it is not valid."""
        from taskrunner.model.models import TaskFile

        problems = checks.structure(self.document)
        if problems:
            raise TaskFileError(problems)
        return TaskFile.model_validate(self.document.data)


def load(file: str | Path | TaskFile | LoadedFile) -> LoadedFile:
    """Read a task file: a path, a pack's name, or one that was built in Python.

    Raises NotFoundError, and TaskFileError when it is not JSON; `validate` says the rest.
    """
    if isinstance(file, LoadedFile):
        return file
    if isinstance(file, (str, Path)):
        path = Path("/dev/stdin") if str(file) == "-" else packs.find(str(file))
        document = Document.read(path, _shown(path))
        # What comes through a pipe has no place where it could be found again.
        place = path if path.is_file() else None
        return LoadedFile(_expanded(document, place.resolve().parent if place else Path.cwd()), place)
    text = json.dumps(file.to_json(), indent=2, ensure_ascii=False)
    document = Document("(built in Python)", text)
    return LoadedFile(_expanded(document, Path.cwd()), None)


def _expanded(document: Document, folder: Path) -> Document:
    """A document with what it includes, from that folder on, and extends. Raises TaskFileError."""
    if document.shares:
        from taskrunner.model.include import expand  # few files need it

        expand(document, folder)
    return document


def _shown(path: Path) -> str:
    """A path as its user would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def validate(
    file: str | Path | TaskFile | LoadedFile, env: Mapping[str, Value] | None = None
) -> list[Problem]:
    """Everything that is wrong with a task file, in the order of the file; [] when nothing is.

    Variables that must be given may be missing: what can be checked without them is.
    """
    try:
        loaded = load(file)
        document = loaded.document
        explicit = {name: text_of(value) for name, value in (env or {}).items()}
        given = environment_of_nodes()
        if isinstance(document.data, dict):
            for name, entry in declared(document).items():
                if entry.get("required"):
                    given.setdefault(name, _first(entry.get("choices"), name))
        compile_plan(document, path=loaded.path, given=given, explicit=explicit)
    except TaskFileError as error:
        return error.problems
    return []


class Options(TypedDict, total=False):
    """What a run may be given; each is the option of the command of about the same name.

    `env` gives values to variables, `env_files` names files of NAME=value lines; `start` (--from),
    `until` and `only` choose steps; `reset` forgets what was done before; `check` evaluates the
    guards again at the end; `defaults` gives values that all others override; `cwd` is where relative
    paths of the steps start (default: here, and the home on another machine).
    """

    env: Mapping[str, Value]
    defaults: Mapping[str, str]
    env_files: Iterable[str | Path]
    start: str | None
    until: str | None
    only: Iterable[str]
    reset: bool
    check: bool
    cwd: str | Path


def _first(choices: object, name: str) -> str:
    return text_of(choices[0]) if isinstance(choices, list) and choices else name


def compile(
    file: str | Path | TaskFile | LoadedFile, *, on: str | Transport | None = None, **options: Unpack[Options]
) -> Plan:
    """The plan that `run` would run: JSON, with every template replaced.

    Raises TaskFileError with every problem, NotFoundError for an unknown step id, UsageError for an unknown
    option.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise UsageError(f"unknown option {name!r}", closest(name, Options.__annotations__))
    loaded = load(file)
    elsewhere = bool(on if isinstance(on, str) else on and on.name)
    given: dict[str, str] = dict(options.get("defaults", {}))
    for path in options.get("env_files", ()):
        given.update(read_env_file(Path(path)))
    given.update(environment_of_nodes())
    return compile_plan(
        loaded.document,
        path=loaded.path,
        given=given,
        explicit={name: text_of(value) for name, value in options.get("env", {}).items()},
        selection=Selection(options.get("start"), options.get("until"), tuple(options.get("only", ()))),
        reset=options.get("reset", False),
        check=options.get("check", False),
        cwd=_cwd(options.get("cwd"), elsewhere),
        elsewhere=elsewhere,
        project=_project(loaded.path),
    )


def _project(path: Path | None) -> Project | None:
    """That of the packs, wherever they are installed; None for any other file, which is in a folder of
    its own.
    """
    folder = packs.folder().resolve()
    return Project("packs", folder) if path and folder in path.resolve().parents else None


def _cwd(given: str | Path | None, elsewhere: bool) -> Path | None:
    return None if given is None else Path(given) if elsewhere else Path(given).absolute()


def start(
    file: str | Path | TaskFile | LoadedFile,
    *,
    on: str | Transport | None = None,
    **options: Unpack[Options],
) -> runs.Run:
    """Start a task file and return the run, which goes on whatever becomes of this process.

    It runs on this machine, or `on` another one: a target such as ssh://user@host:port, or a
    transport. When the same run is under way already and nobody follows it, that run is returned.
    Raises TaskFileError, NotFoundError, LockHeldError, StateError, TargetError.
    """
    return begin(compile(file, on=on, **options), reach(on))


def reach(on: str | Transport | None) -> Transport:
    """The transport of a target; that of this machine for None. Raises UsageError."""
    if isinstance(on, str):
        return connect(on)
    return on or LocalTransport()


def begin(
    plan: Plan,
    transport: Transport,
    *,
    id: str = "",
    idle: Callable[[runs.Run], object] = lambda _: None,
) -> runs.Run:
    """Start a compiled plan, and remember its file as the last one of its folder; see runs.launch."""
    log.protect(plan)
    run = runs.launch(plan, transport, id=id, idle=idle)
    if Path(plan["path"]).is_absolute():
        history.remember_last(plan["path"])
    return run


def run(
    file: str | Path | TaskFile | LoadedFile,
    *,
    on: str | Transport | None = None,
    on_event: Callable[[Event], object] | None = None,
    **options: Unpack[Options],
) -> runs.Result:
    """Run a task file and wait for its end; a failed step is a result, not an exception.

    `on_event` is called with every event. Raises what `start` raises, and EngineDiedError.
    """
    transport = reach(on)
    try:
        with start(file, on=transport, **options) as begun:
            return begun.result(on_event)
    finally:
        if transport is not on:
            transport.close()


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of NAME=value lines, as python-dotenv and a shell read them: quotes,
    comments, `export ` before a name, values over several lines. Nothing is replaced in a value. Raises
    UsageError with the line.
    """
    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: {reason}") from error
    values = {}
    for line in parse_stream(io.StringIO(text)):
        name = line.key or ""
        if line.error or (name and (line.value is None or not name.isidentifier() or not name.isascii())):
            # A line of white space before it belongs to it, too.
            number = line.original.line + len(line.original.string) - len(line.original.string.lstrip("\n"))
            raise UsageError(f"{path}:{number}:1: expected NAME=value")
        if name:
            values[name] = line.value or ""
    return values

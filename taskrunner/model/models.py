"""The task file's types, for building one in Python; the JSON Schema is generated from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from taskrunner.model.part import Part, allow_comments, json_schema, without_comments

NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
ID = r"^[^\x00-\x1f\x7f]+$"
DURATION = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$"

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Filled = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]*$")]
Name = Annotated[str, StringConstraints(pattern=NAME)]
Scalar = Annotated[bool | int | float | Text, Field(union_mode="smart")]
Duration = Annotated[float, Field(gt=0, le=31_536_000)] | Annotated[str, StringConstraints(pattern=DURATION)]


Environment = Annotated[dict[Name, Scalar], BeforeValidator(without_comments)]
Values = Scalar | list[Scalar]


def _name_or_extends(schema: dict[str, Any]) -> None:
    allow_comments(schema)
    schema["anyOf"] = [{"required": ["name"]}, {"required": ["extends"]}]


class Metadata(Part):
    """What the file is for."""

    name: Text | None = None
    description: Text | None = None
    version: Scalar | None = None


class Variable(Part):
    """A variable with more attributes than its default."""

    default: Scalar | None = Field(default=None, description="The value when none is given.")
    description: Text | None = None
    required: bool = Field(default=False, description="A value must be given; there is no default.")
    secret: bool = Field(default=False, description="It never appears in a log, an event or a listing.")
    from_env: bool = Field(
        default=False,
        description="Its value comes from the caller's environment, if set there; else from the default.",
    )
    choices: Annotated[list[Scalar], Field(min_length=1)] | None = Field(
        default=None, description="The allowed values."
    )


class Retries(Part):
    """Run a failed step again."""

    attempts: Annotated[int, Field(ge=1, le=1000)] = Field(description="Maximum number of attempts in total.")
    delay: Duration = Field(default=1.0, description="Seconds (or 30s, 5m) before the second attempt.")
    backoff: Annotated[float, Field(ge=1, le=100)] = Field(
        default=1.0, description="The delay grows by this factor with each attempt."
    )


class LogPattern(Part):
    """Lines of a log that match a regular expression."""

    pattern: Filled
    path: Filled | None = None
    service: Filled | None = None


class Probe(Part):
    """A condition that is polled until it holds: one of http, tcp, listen, file and log."""

    http: Annotated[str, StringConstraints(pattern=r"^(https?://|.*<<|.*\{\{)")] | None = Field(
        default=None, description="A URL that responds with 2xx, or with `status`."
    )
    status: Annotated[int, Field(ge=100, le=599)] | None = None
    tcp: Annotated[str, StringConstraints(pattern=r":([0-9]+|<<\w+>>|\{\{\w+\}\})$")] | None = Field(
        default=None, description="host:port that accepts a connection."
    )
    listen: (
        Annotated[int, Field(ge=1, le=65535)]
        | Annotated[str, StringConstraints(pattern=r"^([0-9]+|<<\w+>>|\{\{\w+\}\})$")]
        | None
    ) = Field(
        default=None,
        description="In `ready`: a port that the service itself listens on. Nothing connects to it: a server"
        " for one client would take that for its client.",
    )
    file: Filled | None = Field(default=None, description="A path that exists.")
    log: Filled | LogPattern | None = Field(
        default=None,
        description="A regular expression that the log matches; in `wait_for`, an object with `path` or"
        " `service`.",
    )
    timeout: Duration = Field(default=300.0, description="How long to keep polling.")


EXTENDS = Field(
    default=None, description="The name of an entry in `services` or `steps` whose members it inherits."
)


class SharedService(Part):
    """A service that others extend."""

    extends: Filled | None = EXTENDS
    name: Filled | None = None
    command: Filled | Annotated[list[Text], Field(min_length=1)] | None = None
    state: Literal["started", "stopped", "ended"] = Field(
        default="started",
        description="`ended`: wait until a one-shot service has ended by itself with status 0, at most"
        " `stop_timeout`.",
    )
    one_shot: bool = Field(
        default=False,
        description="It serves one client, then ends: each step that wants it starts it anew, and an end with"
        " status 0 is no failure.",
    )
    ready: Probe | None = None
    fail_on: list[Filled] = Field(
        default=[],
        description="Regular expressions: a matching line ends the wait; the first one is shown.",
    )
    keep_if: Filled | None = Field(
        default=None,
        description="A command: when it succeeds, a running server is kept even if its definition changed."
        " $TASKRUNNER_COMMAND is the service's command, $TASKRUNNER_SERVICE a folder that the server may have"
        " written to.",
    )
    env: Environment = Field(default={})
    cwd: Filled | None = None
    stop_timeout: Duration = Field(default=30.0, description="Time between SIGTERM and SIGKILL.")


class Service(SharedService):
    """A long-running server: started once, kept while it is healthy, stopped as a whole."""

    model_config = ConfigDict(json_schema_extra=_name_or_extends)

    @model_validator(mode="after")
    def _named(self) -> Service:
        if self.name is None and self.extends is None:
            raise ValueError("a service needs `name` or `extends`")
        return self


class File(Part):
    """A file or folder that is copied."""

    from_: Filled = Field(alias="from")
    to: Filled

    model_config = ConfigDict(populate_by_name=True)


class SharedStep(Part):
    """A step that others extend."""

    extends: Filled | None = EXTENDS
    name: Text | None = None
    description: Text | None = None
    when: (
        Annotated[dict[Name, Values | dict[Literal["not"], Values]], BeforeValidator(without_comments)] | None
    ) = Field(default=None, description="Run only when each of these variables has (one of) these values.")
    skip_if: Text | None = Field(
        default=None, description="A command: when it succeeds, the step is skipped."
    )
    skip_if_timeout: Duration = Field(default=60.0, description="A guard that takes longer is an error.")
    commands: list[Text] = Field(
        default=[], description="Run in order in one shell; the first that fails ends the step."
    )
    env: Environment = Field(default={})
    cwd: Filled | None = None
    timeout: Duration | None = Field(default=None, description="Seconds, or 30s, 10m, 2h.")
    retries: Retries | None = None
    run_as: Filled | None = Field(default=None, description="The user that runs the step.")
    on_failure: Literal["stop", "continue"] = "stop"
    always: bool = Field(default=False, description="Clean-up: run also after a failure or a cancel.")
    files: list[File] = Field(default=[], description="Needed by the step; copied before it.")
    outputs: list[File] = Field(default=[], description="Results of the step; copied after it.")
    service: SharedService | None = None
    wait_for: Probe | None = None


class Task(SharedStep):
    """One step: a guard, and what to do when the guard does not hold."""

    id: Annotated[str, StringConstraints(pattern=ID, max_length=200)]
    service: Service | None = None


class TaskFile(Part):
    """A task file: steps that are run in order, each once. Without tasks it can be included by others."""

    schema_: str | None = Field(default=None, alias="$schema")
    metadata: Metadata | None = None
    name: Text | None = Field(default=None, description="Older form of metadata.name.")
    description: Text | None = Field(default=None, description="Older form of metadata.description.")
    version: Scalar | None = Field(default=None, description="Older form of metadata.version.")
    include: Filled | list[Filled] = Field(
        default=[],
        description="Files whose variables, services and steps can be used here; relative to this file.",
    )
    variables: Annotated[dict[Name, Scalar | Variable], BeforeValidator(without_comments)] = Field(default={})
    services: Annotated[dict[Filled, SharedService], BeforeValidator(without_comments)] = Field(default={})
    steps: Annotated[dict[Filled, SharedStep], BeforeValidator(without_comments)] = Field(default={})
    tasks: list[Task]

    model_config = ConfigDict(populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """The file's JSON value, without what was left at its default."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def generate() -> dict[str, Any]:
    """The JSON Schema of a task file (draft 2020-12)."""
    schema = json_schema(TaskFile, "taskrunner task file")
    del schema["required"]  # a file that is included has no tasks
    return schema

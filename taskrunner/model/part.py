"""What the types of every kind of file are made of, and how their JSON Schema is generated."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def without_comments(data: Any) -> Any:
    """A JSON object without the members that are comments: their names start with `_`."""
    if isinstance(data, dict):
        return {name: value for name, value in data.items() if not str(name).startswith("_")}
    return data


def allow_comments(schema: dict[str, Any]) -> None:
    schema["patternProperties"] = {"^_": {}}


class Part(BaseModel):
    """A JSON object of a file: members that start with `_` are comments, others are known."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=allow_comments)

    _comments = model_validator(mode="before")(without_comments)


def json_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """The JSON Schema of a kind of file, as it is committed."""
    schema = model.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = title
    schema.update(_without_noise({key: schema[key] for key in ("properties", "$defs")}))
    return schema


def _without_noise(value: Any, names: bool = False) -> Any:
    """Without pydantic's titles and nulls: an optional member is left out, never null."""
    if isinstance(value, list):
        return [_without_noise(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, item in value.items():
        if not names and (name == "title" or (name == "default" and item is None)):
            continue
        kept[name] = _without_noise(item, names=not names and name in ("properties", "$defs"))
    if "patternProperties" in kept and "properties" not in kept and not names:
        # A mapping from names: any other name is an error, unless it is a comment.
        kept["patternProperties"]["^_"] = {}
        kept["additionalProperties"] = False
    options = kept.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options:
        options = [option for option in options if option != {"type": "null"}]
        del kept["anyOf"]
        kept = {**options[0], **kept} if len(options) == 1 else {**kept, "anyOf": options}
    return kept

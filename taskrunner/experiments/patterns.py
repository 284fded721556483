"""The patterns of a plan, expanded: each setting with the place that it comes from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from taskrunner.errors import Problem, closest
from taskrunner.experiments.models import AnalysisSettings, Pattern, PlanFile, Settings, ToolSettings
from taskrunner.model.document import Document, Place

ALIASES = {"prefix_cache": "enable_prefix_caching", "iterations": "measurement_iterations"}
"""Older names, and those that count. A tool's `iterations` are its own."""
DEFAULTS: Mapping[str, Any] = {
    "max_tokens": 128,
    "concurrency": 1,
    "warmup_iterations": 10,
    "measurement_iterations": 30,
    "tp_size": 1,
}
END_TO_END = "end-to-end"
TOOL = "tool"
ANALYSIS = "analysis"
NAMES = frozenset(Settings.model_fields)
_TOOL_NAMES = frozenset(ToolSettings.model_fields) - {"adhoc"}
_ANALYSIS_NAMES = frozenset(AnalysisSettings.model_fields)


class Measurement(NamedTuple):
    """A pattern with every setting that counts for it: what it is, and from where each value comes."""

    id: str
    layer: str
    kind: str
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    adhoc: bool
    description: str
    document: Document
    place: Place

    def __getattr__(self, name: str) -> Any:
        """A setting by its name; None where nothing says it."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self.values.get(name)


def expanded(
    document: Document, part: PlanFile, plan: PlanFile, problems: list[Problem]
) -> Iterator[Measurement]:
    """The patterns of `part`, which stands in `document`; `plan` includes it, or is the same."""
    common = _said(plan.common_settings)
    infrastructure = plan.infrastructure or {}
    if "tp_size" in infrastructure:
        common["tp_size"] = int(float(infrastructure["tp_size"]))
    for number, layer in enumerate(part.layers or []):
        of_layer = {**_known(layer.vllm_config or {}), **_said(layer)}
        place: Place = ("layers", number)
        listed = [
            (_said(one), one.id, bool(one.adhoc), one.description, (*place, "patterns", index))
            for index, one in enumerate(layer.patterns or [])
        ]
        matrices = layer.matrix if isinstance(layer.matrix, list) else [layer.matrix] if layer.matrix else []
        for index, matrix in enumerate(matrices):
            at: Place = (*place, "matrix", index) if isinstance(layer.matrix, list) else (*place, "matrix")
            wrong = next((name for name in matrix.values if name not in NAMES | _TOOL_NAMES), None)
            if wrong:
                hint = closest(wrong, NAMES | _TOOL_NAMES)
                problems.append(
                    document.problem((*at, "values", wrong), f"unknown setting {wrong!r}", hint, key=True)
                )
                continue
            for values in _combinations(matrix.values, matrix.exclude or [], matrix.override or []):
                try:
                    Pattern.model_validate({"id": "x", **values})
                except ValidationError as error:
                    first = error.errors()[0]
                    setting = ".".join(map(str, first["loc"]))
                    problems.append(document.problem(at, f"matrix: {setting}: {first['msg']}"))
                    break
                named = {**DEFAULTS, **common, **of_layer, **values, "layer": layer.id, "phase": plan.phase}
                listed.append((values, _id(matrix.id, matrix.suffix, named), False, "", at))
        for values, name, adhoc, description, at in listed:
            name = name.replace("{phase}", str(plan.phase or ""))
            yield _measurement(
                name,
                layer.id,
                values,
                of_layer,
                common,
                adhoc=bool(layer.adhoc) or adhoc,
                description=description or "",
                document=document,
                place=at,
            )


def _measurement(
    name: str,
    layer: str,
    own: Mapping[str, Any],
    of_layer: Mapping[str, Any],
    common: Mapping[str, Any],
    **where: Any,
) -> Measurement:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, source in (("default", DEFAULTS), ("plan", common), ("layer", of_layer), ("pattern", own)):
        tool = "tool" in own or "tool" in of_layer
        for key, value in source.items():
            key = key if tool and key == "iterations" else ALIASES.get(key, key)
            values[key], origins[key] = value, origin
    kind = TOOL if values.get("tool") else ANALYSIS if not values.get("prompt_tokens") else END_TO_END
    if kind == END_TO_END:
        transport = values.get("transport")
        if not values.get("mode"):
            values["mode"], origins["mode"] = "disaggregated" if transport else "unified", "default"
        if values["mode"] == "unified":
            values.pop("transport", None)
        if not values.get("backend"):
            values["backend"], origins["backend"] = values.get("transport") or "unified", "default"
    else:
        values = {key: value for key, value in values.items() if origins[key] in ("layer", "pattern")}
        origins = {key: origins[key] for key in values}
    return Measurement(name, layer, kind, values, origins, **where)


def _said(part: Settings | Pattern | None) -> dict[str, Any]:
    """The settings that a part of the plan names."""
    if part is None:
        return {}
    names = NAMES | _TOOL_NAMES | _ANALYSIS_NAMES
    return {
        name: value
        for name, value in part.model_dump(exclude_unset=True, by_alias=False).items()
        if name in names and value is not None
    }


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in NAMES and value is not None}


def _combinations(
    values: Mapping[str, Sequence[Any]],
    exclude: Sequence[Mapping[str, Any]],
    override: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*values.values()):
        one = dict(zip(values, chosen, strict=True))
        if any(_matches(one, rule) for rule in exclude):
            continue
        for rule in override:
            if _matches(one, rule.get("when", {})):
                one |= rule.get("set", {})
        yield one


def _matches(values: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(
        values.get(name) in wanted if isinstance(wanted, list) else values.get(name) == wanted
        for name, wanted in rule.items()
    )


def label(tokens: int) -> str:
    """1024 is 1k, 100000 is 100k, 240 is 240."""
    if tokens % 1024 == 0:
        return f"{tokens // 1024}k"
    return f"{tokens // 1000}k" if tokens % 1000 == 0 else str(tokens)


def _id(template: str | None, suffix: str | None, values: Mapping[str, Any]) -> str:
    mode, transport = values.get("mode"), values.get("transport")
    backend = values.get("backend") or ("unified" if mode == "unified" or not transport else transport)
    named = {
        **values,
        "backend": backend,
        "prompt_label": values.get("prompt_label") or label(values.get("prompt_tokens", 0)),
    }
    text = template or "p{phase}-{backend}-{prompt_label}-c{concurrency}"
    name = re.sub(r"\{(\w+)\}", lambda match: str(named.get(match[1], "")), text)
    return f"{name}-{suffix}" if suffix else name

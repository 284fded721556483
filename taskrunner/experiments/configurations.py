"""Configurations: what servers are started with, and which patterns share one start of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from taskrunner.experiments.patterns import Measurement
from taskrunner.experiments.plan import NATIVE_LEN, Plan
from taskrunner.inference.serving.lengths import max_model_len

START_MINUTES = 10.0
"""Of a server, where neither the plan nor earlier results say it: 32B on four L40S take about that long."""
OF_SERVERS = ("TUNING", "KV_LEASE", "GPUS", "PREFILL_GPUS", "DECODE_GPUS")
"""Variables of the serving packs that a plan does not decide, and that servers depend on."""
BY_PLAN = ("FABRIC", "YARN", "CROSS_LAYERS", "MAX_MODEL_LEN", "PROMPT_TOKENS", "OUTPUT_TOKENS", "CONCURRENCY")
"""Those that only a plan can decide, as they differ from pattern to pattern."""
UNIFIED, PREFILL, DECODE = "unified", "prefill", "decode"


class Configuration(NamedTuple):
    """Servers with one set of arguments: variables of the serving packs, and the patterns measured there."""

    mode: str
    variables: Mapping[str, str]
    patterns: tuple[Measurement, ...]
    layer: str

    @property
    def key(self) -> str:
        """The same for the same servers, whatever the plan calls them."""
        return digest([self.mode, dict(self.variables)])

    @property
    def roles(self) -> Mapping[str, str]:
        """The key of each server: one whose key stays need not be started anew."""
        names = (UNIFIED,) if self.mode == "unified" else (PREFILL, DECODE)
        return {name: digest([name, dict(self.variables)]) for name in names}

    @property
    def title(self) -> str:
        """What tells it from others, for people."""
        told = [self.variables["FABRIC"] if self.mode != "unified" else "unified"]
        told.append(f"max_model_len {int(self.variables['MAX_MODEL_LEN']):,}")
        told += ["YaRN"] * (self.variables["YARN"] == "true")
        told += ["cross-layers"] * (self.variables["CROSS_LAYERS"] == "true")
        if self.variables["PREFIX_CACHING"]:
            told.append("prefix cache" if self.variables["PREFIX_CACHING"] == "true" else "no prefix cache")
        return ", ".join(told)


def digest(value: Any) -> str:
    """Twelve digits for a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def configurations(plan: Plan, chosen: Iterable[Measurement]) -> list[Configuration]:
    """The configurations of end-to-end patterns, in the order in which the plan first needs them.

    Patterns that differ in nothing but lengths share one, whose `max_model_len` is the largest need: else
    every prompt length would be a restart. A layer that gives its own is a group of its own.
    """
    groups: dict[str, list[Measurement]] = {}
    for pattern in chosen:
        own = pattern.max_model_len if pattern.origins.get("max_model_len") == "layer" else None
        groups.setdefault(json.dumps([pattern.mode, variables(plan, pattern), own]), []).append(pattern)
    made = []
    for members in groups.values():
        length = max(needed(plan, member) for member in members)
        settings = {**variables(plan, members[0]), "MAX_MODEL_LEN": str(length)}
        ordered = tuple(sorted(members, key=lambda one: (one.prompt_tokens, one.concurrency)))
        made.append(Configuration(members[0].mode, settings, ordered, members[0].layer))
    return made


def needed(plan: Plan, pattern: Measurement) -> int:
    """The longest sequence that the servers of a pattern must take; without YaRN, of what the model can."""
    if pattern.max_model_len:
        return int(pattern.max_model_len)
    usual = max_model_len(pattern.prompt_tokens, pattern.max_tokens)
    if pattern.requires_yarn:
        return max(131_072, usual)
    native = int(plan.number("native_len", NATIVE_LEN))
    return int(max(pattern.prompt_tokens + pattern.max_tokens, min(usual, native)))


def variables(plan: Plan, pattern: Measurement) -> dict[str, str]:
    """What a pattern makes the serving packs start, but for the length."""
    extra = [pattern.vllm_arguments] if pattern.vllm_arguments else []
    if pattern.max_num_batched_tokens:
        extra.append(f"--max-num-batched-tokens {pattern.max_num_batched_tokens}")
    if pattern.enable_chunked_prefill is False:
        extra.append("--no-enable-chunked-prefill")
    decided = {
        "MODEL": str(plan.infrastructure("model", "")),
        "FABRIC": pattern.transport or "",
        "YARN": _flag(bool(pattern.requires_yarn)),
        "CROSS_LAYERS": _flag(bool(pattern.enable_cross_layers_blocks)),
        "PREFIX_CACHING": ""
        if pattern.enable_prefix_caching is None
        else _flag(pattern.enable_prefix_caching),
        "ENFORCE_EAGER": "" if pattern.enforce_eager is None else _flag(pattern.enforce_eager),
        "TENSOR_PARALLEL": str(pattern.tp_size or 1),
        "GPU_MEMORY": "" if pattern.gpu_memory_utilization is None else f"{pattern.gpu_memory_utilization:g}",
        "VLLM_ARGUMENTS": " ".join(extra),
    }
    # What is given otherwise makes other servers, and so other results.
    return decided | {name: value for name, value in plan.values.items() if name in {*decided, *OF_SERVERS}}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def start_minutes(plan: Plan, measured: Mapping[str, float] | None = None) -> Mapping[str, float]:
    """Minutes until a server of each role is ready: those of earlier results, else what the plan says."""
    stated = plan.number("start_minutes", START_MINUTES)
    return {role: (measured or {}).get(role, stated) for role in (UNIFIED, PREFILL, DECODE)}


def setup(before: Configuration | None, after: Configuration, minutes: Mapping[str, float]) -> float:
    """Minutes from one configuration to the next: roles start at the same time, one whose key stays not at
    all.
    """
    kept = set(before.roles.values()) if before else set()
    return max((minutes[role] for role, key in after.roles.items() if key not in kept), default=0.0)

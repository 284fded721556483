"""What calls for a closer look, and the patterns of tools that give it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskrunner.analysis.load import Measurement, Sweep
from taskrunner.analysis.shapes import SLOW_FIRST_P, bytes_per_token, usual

UNEXPECTED = 1.3
"""TTFT over EFA, as a multiple of what prefill and the line rate let expect."""
TPOT_APART_MS = 15.0
DEGRADED = 3.0
"""TTFT over TCP at the highest concurrency, as a multiple of that over EFA."""
MANY = 16
FOLLOW_UP = {
    "efa": ("fi_rdm", "fi_pingpong", "fi_rma"),
    "tcp": ("iperf3", "ucx_perftest"),
    "tpot": ("nvidia-smi", "ucx_perftest"),
    "modes": ("fi_pingpong", "fi_rdm", "ucx_perftest"),
}
"""The tools that look at each kind of alarm."""


def alarms(sweep: Sweep, modes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every alarm: what is seen, and the command that follows it up."""
    counting = sweep.counting()
    means = _means(usual(sweep))
    gbps, per_token = sweep.schedule.get("efa_bandwidth_gbps"), bytes_per_token(counting)
    raised = [*_slow_efa(means, gbps, per_token), *_tpot_apart(means), *_degraded(means)]
    for one in modes:
        within = f"within {one['bimodal_starts']} of {one['starts']} starts"
        where = within if one["bimodal_starts"] else "over all starts, each centred"
        first = one["slow_first"] is not None and one["slow_first"] < SLOW_FIRST_P
        text = f"{one['pattern']}: TTFT comes in two kinds ({where})" + (
            "; the slow ones come first" if first else ""
        )
        raised.append({"kind": "modes", "text": text})
    return [{**one, "command": _command(sweep, one["kind"])} for one in raised]


Key = tuple[str, int, int]


def _means(measurements: Iterable[Measurement]) -> dict[str, dict[Key, float]]:
    """Geometric means over starts of TTFT and TPOT by backend, prompt and concurrency."""
    logs: dict[str, dict[Key, list[float]]] = {"ttft": {}, "tpot": {}}
    for one in measurements:
        for metric, values in logs.items():
            value = one.value(metric)
            if value:
                key = (one.backend, one.prompt_tokens, one.concurrency)
                values.setdefault(key, []).append(math.log(value))
    return {
        metric: {key: math.exp(sum(each) / len(each)) for key, each in values.items()}
        for metric, values in logs.items()
    }


def _slow_efa(
    means: Mapping[str, Mapping[Key, float]], gbps: Any, per_token: float
) -> Iterable[dict[str, Any]]:
    if not gbps or not per_token:
        return
    for (backend, prompt, streams), ttft in means["ttft"].items():
        unified = means["ttft"].get(("unified", prompt, streams))
        if backend != "efa" or unified is None or streams != 1:
            continue
        expected = unified + per_token * prompt * 8 / (float(gbps) * 1e6)
        if ttft > UNEXPECTED * expected:
            text = f"EFA, {prompt:,} tokens: TTFT {ttft:.0f} ms, where {expected:.0f} ms are expected"
            yield {"kind": "efa", "text": text}


def _tpot_apart(means: Mapping[str, Mapping[Key, float]]) -> Iterable[dict[str, Any]]:
    for (backend, prompt, streams), tpot in means["tpot"].items():
        unified = means["tpot"].get(("unified", prompt, streams))
        if backend == "efa" and unified is not None and abs(tpot - unified) >= TPOT_APART_MS:
            text = f"EFA and unified, {prompt:,} tokens, c={streams}: TPOT {tpot:.1f} and {unified:.1f} ms"
            yield {"kind": "tpot", "text": text}


def _degraded(means: Mapping[str, Mapping[Key, float]]) -> Iterable[dict[str, Any]]:
    for (backend, prompt, streams), ttft in means["ttft"].items():
        efa = means["ttft"].get(("efa", prompt, streams))
        if backend == "tcp" and streams >= MANY and efa is not None and ttft >= DEGRADED * efa:
            text = f"TCP, {prompt:,} tokens, c={streams}: TTFT {ttft / efa:.1f} times that over EFA"
            yield {"kind": "tcp", "text": text}


def _command(sweep: Sweep, kind: str) -> str:
    """The command that runs the patterns of tools which look at it; "" where the plan has none."""
    tools = sweep.schedule.get("tools", {})
    return sweep.command(name for name, tool in tools.items() if str(tool).startswith(FOLLOW_UP[kind]))

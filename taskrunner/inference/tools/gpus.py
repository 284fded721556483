"""The GPUs of this node by nvidia-smi: what they are, how they are connected, what they do for a while."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from . import node_record
from .process import output_of
from .reading import NotAResult, last_words
from .registry import parser

FIELDS = (
    "index,name,uuid,pci.bus_id,memory.total,memory.used,memory.free,temperature.gpu,utilization.gpu,"
    "power.draw,clocks.sm,clocks.max.sm,clocks.mem,pstate,driver_version,compute_cap,"
    "pcie.link.gen.current,pcie.link.width.current,ecc.errors.uncorrected.volatile.total"
)
PATIENCE_S = 60.0
HOT_C = 80
"""Degrees from which a GPU may soon be slowed down."""
SLOW = 0.9
"""The share of its greatest clock that a busy GPU should have."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("--seconds", type=int, default=5, help="how long they are watched (5)")
    parser.add_argument("--selection", default="pucvmet", help="what dmon watches (pucvmet)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where the record goes")


def main(args: argparse.Namespace) -> int:
    """Ask, and record; 1 where nvidia-smi does not answer."""
    try:
        result = look(args.seconds, args.selection)
    except NotAResult as error:
        print(f"nvidia-smi: {error}", file=sys.stderr)
        return 1
    node_record.tell(result, lines(result), args.output)
    return 0


def look(seconds: int, selection: str) -> dict[str, Any]:
    """The record. Raises NotAResult."""
    watch = ["dmon", "-s", selection, "-d", "1", "-c", str(seconds)]
    gpus = _asked(PATIENCE_S, f"--query-gpu={FIELDS}", "--format=csv")["gpus"]
    topology = _asked(PATIENCE_S, "topo", "-m")
    dmon = _asked(PATIENCE_S + 2 * seconds, *watch)["gpus"]
    return node_record.made(
        "gpus",
        gpus=gpus,
        topology={"links": topology["links"], "nics": topology["nics"]},
        dmon=dmon,
        notes=list(_notes(gpus, dmon)),
    )


def _asked(patience: float, *words: str) -> dict[str, Any]:
    status, output, errors = output_of(["nvidia-smi", *words], patience)
    if status != 0:
        raise NotAResult(f"{words[0]}: {last_words(output + errors)}")
    return parser("nvidia-smi")(output)


def _notes(gpus: list[dict[str, Any]], dmon: Mapping[str, Any]) -> Iterator[str]:
    for gpu in gpus:
        name = f"GPU {int(gpu['index'])}"
        if (gpu.get("temperature_gpu") or 0) >= HOT_C:
            yield f"{name} has {gpu['temperature_gpu']:.0f} °C"
        if gpu.get("ecc_errors_uncorrected_volatile_total"):
            yield f"{name} has {gpu['ecc_errors_uncorrected_volatile_total']:.0f} uncorrected memory errors"
        if (gpu.get("utilization_gpu_percent") or 0) > 0:
            yield f"{name} is in use"
            clock, most = gpu.get("clocks_current_sm_mhz"), gpu.get("clocks_max_sm_mhz")
            if clock and most and clock < SLOW * most:
                yield f"{name} is busy at {clock:.0f} of {most:.0f} MHz"
        errors = (dmon.get(str(int(gpu["index"]))) or {}).get("pviol")
        if errors and errors["max"] > 0:
            yield f"{name} was slowed down by its power limit"


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The record for people."""
    for gpu in result["gpus"]:
        yield (
            f"GPU {gpu['index']:.0f}  {gpu['name']}  {_figure(gpu['memory_total_mib'])} MiB  "
            f"{_figure(gpu['temperature_gpu'])} °C  {_figure(gpu['power_draw_w'])} W  {gpu['pstate']}  "
            f"{_figure(gpu['clocks_current_sm_mhz'])} MHz"
        )
    links = result["topology"]["links"]
    for name, row in links.items():
        shown = result["topology"]["nics"].get(name, name)
        yield f"{shown}: " + ", ".join(f"{other} {way}" for other, way in row.items() if other != name)
    yield from (f"note: {note}" for note in result["notes"])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"

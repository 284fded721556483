"""What nvidia-smi prints: --query-gpu as CSV with a header, dmon as a table or CSV, topo -m, and -q -x.

Its own errors come on stdout; a field that is not available is None.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from .reading import NUMBER, NotAResult, Parsed, lines_of, record

ANSI = re.compile(r"\x1b\[[0-9;]*m")
UNIT = re.compile(r"^(.*?)(?: \[(.*)\])?$")
HEADER = re.compile(r"[a-z_]+(?:[.\w]+)*(?: \[[^\]]+\])?(?:, [a-z_]+[.\w]*(?: \[[^\]]+\])?)*")
MISSING = ("[N/A]", "N/A", "[Not Supported]", "-", "")
XML = {
    "index": "minor_number",
    "name": "product_name",
    "uuid": "uuid",
    "pci_bus_id": "pci/pci_bus_id",
    "memory_total_mib": "fb_memory_usage/total",
    "memory_used_mib": "fb_memory_usage/used",
    "temperature_gpu": "temperature/gpu_temp",
    "power_draw_w": "gpu_power_readings/instant_power_draw",
    "clocks_current_sm_mhz": "clocks/sm_clock",
    "pstate": "performance_state",
}
"""The fields of -q -x that are read, by their names in --query-gpu."""
NIC = re.compile(r"^\s*(NIC\d+): (\S+)$")
CELL = re.compile(r"X|NV\d+|PIX|PXB|PHB|NODE|SYS")
SUFFIXES = {
    "%": "percent",
    "MiB": "mib",
    "MB": "mb",
    "W": "w",
    "C": "c",
    "MHz": "mhz",
    "MB/s": "mb_s",
    "GB/s": "gb_s",
}


def nvidia_smi(text: str) -> Parsed:
    """Whichever of the four it is. Raises NotAResult."""
    if text.startswith("<?xml"):
        return record("nvidia-smi", **_xml(text))
    lines = [ANSI.sub("", line) for line in lines_of(text)]
    first = next((line for line in lines if line.strip()), "")
    read: Callable[[list[str]], dict[str, Any]]
    if first.startswith("#") and " pid " not in first:
        read = _dmon
    elif first.startswith("\t"):
        read = _topology
    elif HEADER.fullmatch(first):
        read = _query
    else:
        raise NotAResult(first.strip() or "it is empty")
    return record("nvidia-smi", **read(lines))


def _xml(text: str) -> dict[str, Any]:
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - of a tool of this node, without entities
    except ElementTree.ParseError as error:
        raise NotAResult(f"it is cut off: {error}") from error
    gpus = [
        {name: _value((gpu.findtext(path) or "").strip()) for name, path in XML.items()}
        for gpu in root.iter("gpu")
    ]
    if len(gpus) != int(root.findtext("attached_gpus") or 0) or not gpus:
        raise NotAResult("there are not all GPUs in it")
    return {"driver_version": root.findtext("driver_version"), "gpus": gpus}


def _query(lines: list[str]) -> dict[str, Any]:
    names = [_named(cell) for cell in lines[0].split(", ")]
    gpus = []
    for line in lines[1:]:
        cells = line.split(", ")
        if len(cells) != len(names):
            raise NotAResult(f"a row with {len(cells)} of {len(names)} values: {line[:80]!r}")
        gpus.append({name: _value(cell) for name, cell in zip(names, cells)})
    if not gpus:
        raise NotAResult("there is no GPU in it")
    return {"gpus": gpus}


def _named(title: str) -> str:
    match = UNIT.match(title.strip())
    name, unit = (match[1], match[2]) if match else (title, None)
    return re.sub(r"\W", "_", name) + ("_" + SUFFIXES.get(unit, unit) if unit else "")


def _value(cell: str) -> Any:
    """A number without its unit where it is one; None for what is not available."""
    if cell in MISSING:
        return None
    bare = cell.partition(" ")[0] if cell.partition(" ")[2] in SUFFIXES else cell
    return float(bare) if NUMBER.fullmatch(bare) else cell


def _dmon(lines: list[str]) -> dict[str, Any]:
    names: list[str] = []
    samples: list[dict[str, float | None]] = []
    for line in lines:
        cells = [cell.strip() for cell in line.lstrip("# ").split("," if "," in line else None)]
        if line.startswith("#"):
            # Names, then units; both come again in a long run.
            names = cells if cells[:1] == ["gpu"] else names
            if cells[:1] == ["Idx"] and len(cells) != len(names):
                raise NotAResult("its header is cut off")
        elif line.strip():
            if len(cells) != len(names):
                raise NotAResult(f"a row with {len(cells)} of {len(names)} values")
            samples.append({name: _figure(cell) for name, cell in zip(names, cells)})
    if not samples:
        raise NotAResult("there is no sample in it")
    gpus: dict[str, Any] = {}
    counts = Counter(sample["gpu"] for sample in samples)
    if len(set(counts.values())) > 1:
        raise NotAResult("its last round is cut off")
    for index in sorted({int(sample["gpu"] or 0) for sample in samples}):
        of = [sample for sample in samples if sample["gpu"] == index]
        gpus[str(index)] = {
            name: _extent([value for value in (sample[name] for sample in of) if value is not None])
            for name in names[1:]
        }
    return {"samples": samples, "gpus": gpus}


def _figure(cell: str) -> float | None:
    if cell in MISSING:
        return None
    if not NUMBER.fullmatch(cell):
        raise NotAResult(f"{cell!r} is not a number")
    return float(cell)


def _extent(values: list[float]) -> dict[str, float] | None:
    return {"mean": sum(values) / len(values), "max": max(values)} if values else None


def _topology(lines: list[str]) -> dict[str, Any]:
    header = [cell.strip() for cell in lines[0].split("\t")]
    names = [cell for cell in header if re.fullmatch(r"(?:GPU|NIC)\d+", cell)]
    links: dict[str, dict[str, str]] = {}
    nics: dict[str, str] = {}
    legend = False
    for line in lines[1:]:
        cells = [cell.strip() for cell in line.split("\t")]
        nic = NIC.match(line)
        legend = legend or cells[0] == "Legend:"
        if nic:
            nics[nic[1]] = nic[2]
        elif cells[0] in names and not legend:
            row = cells[1 : len(names) + 1]
            if len(row) != len(names) or not all(map(CELL.fullmatch, row)):
                raise NotAResult(f"a row that is cut off: {line[:80]!r}")
            links[cells[0]] = dict(zip(names, row))
    if set(links) != set(names) or not names:
        raise NotAResult("rows are missing")
    return {"links": links, "nics": nics}

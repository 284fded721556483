"""What others take from a report: figures as SVG and PNG, the table as CSV and Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

SCALE = 2.0


def figures(specs: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write each figure as SVG and PNG. What is chosen on the page is as it is at first there."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, spec in specs.items():
        whole = {**spec, "background": "white"}
        (folder / f"{name}.svg").write_text(vl_convert.vegalite_to_svg(whole))
        (folder / f"{name}.png").write_bytes(vl_convert.vegalite_to_png(whole, scale=SCALE))
        written += [folder / f"{name}.svg", folder / f"{name}.png"]
    return written


def table(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the measurements as CSV and Parquet."""
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    text, columns = folder / "measurements.csv", folder / "measurements.parquet"
    with text.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial = columns.with_name(f".{columns.name}.{os.getpid()}")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), partial)
    partial.replace(columns)
    return [text, columns]

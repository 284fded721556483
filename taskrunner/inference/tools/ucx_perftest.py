"""What ucx_perftest prints, as a table or as CSV (-v -f): the overall figures of its end. MB are 2^20 bytes.

A latency test's figure is one way; what the others call overhead is no latency.
"""

from __future__ import annotations

from .reading import MIB, NotAResult, Parsed, lines_of, number, result, row, whole

CSV = ("iterations", "overall_lat", "overall_bw", "overall_mr")
CELLS = 8


def ucx_perftest(text: str, size: int = 0) -> Parsed:
    """The final figures. `size` is that of a message in bytes, which the output does not have.

    Raises NotAResult, with the tool's own words where it has some.
    """
    lines = lines_of(text)
    for line in lines:
        if " ERROR " in line:
            raise NotAResult(line.partition(" ERROR ")[2].strip())
    header = next((index for index, line in enumerate(lines) if line.startswith("iterations,")), None)
    if header is not None:
        if len(lines) <= header + 1:
            raise NotAResult("there is no figure in it")
        if len(lines) > header + 2:
            raise NotAResult("more than one row: -v is to be given with -f")
        values = dict(zip(lines[header].split(","), lines[header + 1].strip().split(",")))
        if any(name not in values for name in CSV):
            raise NotAResult("a row that is cut off")
        figures = [number(values[name]) for name in CSV]
        return _result(figures, None, size)
    kind: str | None = None
    only = False  # -f: a row without a title
    for line in lines:
        if "latency (usec)" in line or "overhead (usec)" in line:
            kind = "latency" if "latency (usec)" in line else "overhead"
        only = only or "|     Test     |" in line
        if line.startswith("Final:") or (only and line[:1] == " " and line.split()[0].isdigit()):
            cells = line.split()[-CELLS:] if only else line.split()[1:]
            if len(cells) != CELLS:
                raise NotAResult("a final row that is cut off")
            figures = [float(whole(cells[0])), *(number(cells[at]) for at in (3, 5, 7))]
            return _result(figures, kind, size)
    raise NotAResult("there is no final row in it")


def _result(figures: list[float], kind: str | None, size: int) -> Parsed:
    iterations, latency, bandwidth, rate = figures
    one_way = latency if kind == "latency" else None
    # Of small messages the bandwidth has no digits left.
    bits = size * rate * 8 if size else bandwidth * MIB * 8
    one = row(
        size,
        int(iterations),
        one_way,
        "one_way" if one_way is not None else "",
        bits / 1e9 if bits else None,
        rate,
        latency / 1e3,
    )
    return result("ucx_perftest", [{**one, "size_bytes": size or None}])

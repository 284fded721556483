"""Try settings of UCX for a fabric: `taskrunner tune`, with the Python of vLLM's environment."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from .. import options
from ..output import write
from ..serving.description import Refused
from ..serving.fabric import fabric
from ..serving.lengths import kv_bytes_of

FAILED, USAGE = 1, 2
AS_IT_IS = "as it is"
VARIANTS = Path(__file__).with_name("variants.json")
"""Settings worth trying, by what the bytes of a fabric are counted by, and by name."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("--fabric", default="tcp", metavar="NAME", help="the fabric (tcp)")
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="its config.json tells the KV bytes a token"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=_numbers,
        default=[1024, 8192],
        metavar="N,...",
        help="prompt lengths (1024,8192)",
    )
    parser.add_argument(
        "--gpus", type=_two, default=None, metavar="N,N", help="GPU of each side (0 and the last)"
    )
    parser.add_argument(
        "--descriptor",
        type=options.SIZE,
        default=65536,
        metavar="BYTES",
        help="bytes of a descriptor (65536)",
    )
    parser.add_argument("--repeats", type=options.COUNT, default=7, metavar="N", help="transfers of each (7)")
    parser.add_argument("--output", "-o", metavar="FILE", help="where the result goes, for `serve --tuning`")


def _numbers(text: str) -> list[int]:
    return sorted({int(options.COUNT(part)) for part in text.split(",")})


def _two(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"expected two GPUs, such as 0,1, got {text!r}")
    return int(parts[0]), int(parts[1])


def main(args: argparse.Namespace) -> int:
    """Try every setting, and say which is best for each prompt length, and by how much."""
    from . import transfer

    try:
        settings = fabric(args.fabric)
        per_token = kv_bytes_of(Path(args.model, "config.json"))
    except Refused as error:
        return _say(str(error), USAGE)
    except (OSError, ValueError, KeyError) as error:
        return _say(f"{args.model}: cannot read config.json: {error}", USAGE)
    if "LD_PRELOAD" in settings["env"]:
        return _say(
            f"fabric {args.fabric} needs LD_PRELOAD, which is not for processes that run already", USAGE
        )
    try:
        import torch  # type: ignore[import-not-found]  # before the processes are forked
    except ImportError:
        return _say("this needs torch and nixl: run it with the Python of vLLM's environment", USAGE)
    count = torch.cuda.device_count() if settings["kv_buffer_device"] == "cuda" else 0
    if settings["kv_buffer_device"] == "cuda" and not count:
        return _say(f"fabric {args.fabric} reads from GPUs, and there is none", USAGE)
    gpus = args.gpus or (0, max(0, count - 1))
    sizes = {tokens * per_token: tokens for tokens in args.prompt_tokens}
    variants = {AS_IT_IS: {}, **json.loads(VARIANTS.read_text()).get(settings["counted_by"], {})}
    rows: list[dict[str, Any]] = []
    for name, more in variants.items():
        env = {**settings["env"], **more, "NIXL_LOG_LEVEL": "ERROR"}
        setup = transfer.Setup(settings["backend"], settings["kv_buffer_device"], gpus, args.descriptor, env)
        row: dict[str, Any] = {"name": name, "env": more, "transfer_ms": {}}
        try:
            for size, times in transfer.measure(setup, list(sizes), args.repeats).items():
                row["transfer_ms"][str(sizes[size])] = round(statistics.median(times), 3)
        except transfer.NoTransfer as error:
            row["error"] = str(error)
        rows.append(row)
        print(_line(row, sizes), flush=True)
    best = {str(tokens): _best(rows, str(tokens)) for tokens in sizes.values()}
    for tokens, found in best.items():
        if found is not None:
            print(f"best for {tokens} tokens: {found['name']}, {found['gain']:.2f} times as fast as it is")
    if args.output:
        record = {
            "version": 1,
            "fabric": args.fabric,
            "kv_bytes_per_token": per_token,
            "descriptor_bytes": args.descriptor,
            "gpus": list(gpus),
            "variants": rows,
            "best": best,
            "hostname": platform.node(),
            "measured": round(time.time(), 3),
        }
        write(args.output, json.dumps(record, indent=1))
    return 0 if any(best.values()) else _say("no setting has transferred anything", FAILED)


def _line(row: dict[str, Any], sizes: dict[int, int]) -> str:
    if "error" in row:
        return f"{row['name']:<24} failed: {row['error']}"
    cells = []
    for size, tokens in sizes.items():
        took = row["transfer_ms"][str(tokens)]
        cells.append(f"{tokens} tokens {took:9.2f} ms {size / took / 1e6:8.2f} GB/s")
    return f"{row['name']:<24} " + "   ".join(cells)


def _best(rows: list[dict[str, Any]], tokens: str) -> dict[str, Any] | None:
    """The setting that is fastest for so many tokens, and how many times as fast as the fabric as it is."""
    whole = [row for row in rows if tokens in row["transfer_ms"]]
    if not whole:
        return None
    found = min(whole, key=lambda row: row["transfer_ms"][tokens])
    base = next(
        (row["transfer_ms"][tokens] for row in whole if row["name"] == AS_IT_IS), found["transfer_ms"][tokens]
    )
    return {"name": found["name"], "env": found["env"], "gain": round(base / found["transfer_ms"][tokens], 3)}


def _say(message: str, status: int) -> int:
    print(f"tune: {message}", file=sys.stderr)
    return status

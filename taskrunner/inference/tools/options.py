"""What can be said of a measurement with a tool, and how texts become sizes and counts."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from .reading import NotAResult, asked_size


def size(text: str) -> int:
    """The bytes of a size with a suffix, which the tools themselves ignore. Raises what argparse reports."""
    try:
        return asked_size(text)
    except NotAResult as error:
        raise argparse.ArgumentTypeError(str(error)) from error


OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("--peer", str, "127.0.0.1", "the server's address"),
    ("--port", int, 18600, "the server's port"),
    ("--size", size, 65536, "bytes of a message; K, M and G are powers of 1,024"),
    ("--iterations", int, 1000, "messages"),
    ("--provider", str, "tcp", "what libfabric or UCX uses: tcp, efa"),
    ("--device", str, "", "RDMA device of perftest's ib_send_bw and the like; empty: the first one"),
    ("--streams", int, 1, "streams of iperf3"),
    ("--seconds", int, 10, "seconds that iperf3 measures"),
    ("--omit", int, 2, "seconds that iperf3 leaves out before"),
    ("--test", str, "tag_lat", "the test of ucx_perftest"),
    ("--memory", str, "host", "memory of ucx_perftest and nixlbench: host, cuda"),
    ("--backend", str, "UCX", "what NIXL uses in nixlbench: UCX, LIBFABRIC"),
    ("--operation", str, "WRITE", "what nixlbench does: WRITE, READ"),
    ("--batch", int, 1, "blocks that nixlbench transfers at once, each of --size"),
    ("--threads", int, 1, "threads of nixlbench"),
    ("--initiators", int, 1, "devices of nixlbench that write to one of the other side"),
    ("--warmup", int, 10, "transfers of nixlbench that do not count"),
    ("--tokens", int, 0, "of kvbench-shape: tokens of the KV cache that is transferred"),
    ("--token-bytes", int, 0, "of kvbench-shape: bytes of the KV cache of a token"),
    ("--timeout", float, 120.0, "seconds in which the tool must end: peers that disagree wait forever"),
)
DEFAULTS = {name.lstrip("-").replace("-", "_"): default for name, _, default, _ in OPTIONS}


def add(parser: argparse.ArgumentParser, names: Collection[str] = ()) -> None:
    """Add the options of these names, or all."""
    for name, kind, default, text in OPTIONS:
        if not names or name.lstrip("-") in names:
            shown = f"{text} ({default})" if default != "" else text
            parser.add_argument(name, type=kind, default=default, help=shown)

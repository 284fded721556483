"""How each tool is called on its two sides: the words of both are the same but for the peer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .registry import FABTESTS, PERFTEST


class Sides(NamedTuple):
    """Templates of the command lines; {peer} is the node of the server."""

    server: str
    client: str
    package: str = ""
    """Debian's package with the tool; "" where there is none."""


_FABTESTS = "{tool} -p {provider} -E={port} -S {size} -I {iterations} -m"
_PERFTEST = "{tool} -d {device} -c {connection} -x 0 -F --report_gbits -s {size} -n {iterations} -p {port}"
"""Without -x 0, the index of an address, packets leave over EFA and never arrive."""
NIXLBENCH = ("nixlbench", "kvbench-shape")
_NIXLBENCH = (
    "nixlbench --backend {backend} --op_type {operation} --scheme {scheme} --mode {mode}"
    " --initiator_seg_type {segment} --target_seg_type {segment} --total_buffer_size {total}"
    " --start_block_size {size} --max_block_size {size} --start_batch_size {batch} --max_batch_size {batch}"
    " --num_iter {iterations} --warmup_iter {warmup} --large_blk_iter_ftr 1 --num_threads {threads}"
    " --num_initiator_dev {initiators} --num_target_dev 1"
)
"""Without --large_blk_iter_ftr 1, blocks over 1 MiB get a sixteenth of the iterations."""
_PINGPONG = "fi_pingpong -p {provider} -e rdm -S {size} -I {iterations}"
TOOLS = {
    "iperf3": Sides(
        "iperf3 -s -1 -p {port} --forceflush",
        "iperf3 -c {peer} -p {port} -P {streams} -t {seconds} -O {omit} -J",
        "iperf3",
    ),
    "fi_pingpong": Sides(_PINGPONG + " -B {port}", _PINGPONG + " -P {port} {peer}", "libfabric-bin"),
    **dict.fromkeys(FABTESTS, Sides(_FABTESTS, _FABTESTS + " {peer}")),
    **dict.fromkeys(PERFTEST, Sides(_PERFTEST, _PERFTEST + " {peer}", "perftest")),
    "ucx_perftest": Sides(
        "ucx_perftest -p {port}",
        "ucx_perftest {peer} -p {port} -t {test} -s {size} -n {iterations} -m {memory} -f",
        "ucx-utils",
    ),
    **dict.fromkeys(NIXLBENCH, Sides(_NIXLBENCH, _NIXLBENCH)),
}


def words(tool: str, side: str, values: Mapping[str, object]) -> list[str]:
    """The command line of one side. Raises KeyError."""
    template = TOOLS[tool].server if side == "server" else TOOLS[tool].client
    return [word.format(**{**values, "tool": tool}) for word in template.split()]


def ucx_transports(provider: str, memory: str) -> str:
    """UCX_TLS of both sides: the transport of a provider, and what moves memory to it."""
    return ",".join(["srd" if provider == "efa" else provider, "self", *(["cuda_copy"] * (memory == "cuda"))])

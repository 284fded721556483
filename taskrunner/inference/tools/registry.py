"""The parsers by the names of their tools."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

from .reading import Parsed

FABTESTS = (
    "fi_rdm_bw",
    "fi_rdm_pingpong",
    "fi_rdm_tagged_bw",
    "fi_rdm_tagged_pingpong",
    "fi_rma_bw",
    "fi_rma_pingpong",
)
PARSERS = {
    "fi_info": "fi_info:fi_info",
    "fi_pingpong": "libfabric:fi_pingpong",
    **dict.fromkeys(FABTESTS, "libfabric:fabtests"),
    "iperf3": "iperf3:iperf3",
    "perftest": "perftest:perftest",
    "ucx_perftest": "ucx_perftest:ucx_perftest",
    "nixlbench": "nixlbench:nixlbench",
    "kvbench": "kvbench:kvbench",
    "nccl-tests": "nccl_tests:nccl_tests",
    "nccl-log": "nccl_log:nccl_log",
    "nvidia-smi": "nvidia_smi:nvidia_smi",
    "ibv_devinfo": "ibv_devinfo:ibv_devinfo",
}


def parser(tool: str) -> Callable[[str], Parsed]:
    """What reads the output of a tool. Raises KeyError."""
    module, name = PARSERS[tool].split(":")
    parse: Callable[..., Parsed] = getattr(import_module("." + module, __package__), name)
    return partial(parse, tool=tool) if tool in FABTESTS else parse

"""The parsers by the names of their tools."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

from .reading import NotAResult, Parsed

ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a text raises that no tool prints."""
FABTESTS = (
    "fi_rdm_bw",
    "fi_rdm_pingpong",
    "fi_rdm_tagged_bw",
    "fi_rdm_tagged_pingpong",
    "fi_rma_bw",
    "fi_rma_pingpong",
)
PERFTEST = ("ib_read_bw", "ib_read_lat", "ib_send_bw", "ib_send_lat", "ib_write_bw", "ib_write_lat")
SIZED = ("fi_pingpong", *FABTESTS, "ucx_perftest")
PARSERS = {
    "fi_info": "fi_info:fi_info",
    "fi_pingpong": "libfabric:fi_pingpong",
    **dict.fromkeys(FABTESTS, "libfabric:fabtests"),
    "iperf3": "iperf3:iperf3",
    **dict.fromkeys(("perftest", *PERFTEST), "perftest:perftest"),
    "ucx_perftest": "ucx_perftest:ucx_perftest",
    "nixlbench": "nixlbench:nixlbench",
    "kvbench": "kvbench:kvbench",
    "nccl-tests": "nccl_tests:nccl_tests",
    "nccl-log": "nccl_log:nccl_log",
    "nvidia-smi": "nvidia_smi:nvidia_smi",
    "ibv_devinfo": "ibv_devinfo:ibv_devinfo",
}


def parser(tool: str) -> Callable[..., Parsed]:
    """What reads the output of a tool; those in SIZED take the `size` that was asked for. Raises KeyError."""
    module, name = PARSERS[tool].split(":")
    parse: Callable[..., Parsed] = getattr(import_module("." + module, __package__), name)
    if tool in FABTESTS:
        parse = partial(parse, tool=tool)

    def checked(text: str, **known: int) -> Parsed:
        try:
            return parse(text, **known)
        except NotAResult:
            raise
        except ODD as error:
            raise NotAResult(f"not what {tool} prints ({type(error).__name__}: {error})") from error

    return checked

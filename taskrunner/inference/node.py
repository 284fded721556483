"""The commands of this package on a node; `taskrunner` has the same."""

from __future__ import annotations

import argparse
from importlib import import_module

COMMANDS = {
    "baseline": "tools.baseline",
    "bench": "bench.main",
    "clocks": "tools.clocks",
    "fi-info": "tools.providers",
    "gpudirect": "tools.gpudirect",
    "gpus": "tools.gpus",
    "measured": "sweep.measured",
    "nccl": "tools.nccl",
    "neuron": "neuron.main",
    "proxy": "proxy.main",
    "rendezvous": "sweep.rendezvous",
    "sample": "circumstances.main",
    "serve": "serving.main",
    "tool": "tools.main",
    "tune": "tune.main",
}
"""Each with its module: only its own is imported, as those of `tools` run where nothing is installed."""


def main(argv: list[str]) -> int:
    """Run one of them; returns its exit status."""
    parser = argparse.ArgumentParser(prog="inference")
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(argv[:1]).command
    module = import_module("." + COMMANDS[command], __package__)
    own = argparse.ArgumentParser(prog=f"inference {command}", description=module.__doc__)
    module.arguments(own)
    return int(module.main(own.parse_args(argv[1:])))

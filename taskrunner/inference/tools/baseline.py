"""What the network between two nodes can do: TCP by iperf3, EFA by a tool of libfabric, and their ratio."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import commands, node_record
from .cards import CARDS
from .measure import NotInstalledError, measured
from .options import DEFAULTS, add, size

Range = tuple[float, float]
SHARED = ("peer", "port", "seconds", "omit", "timeout")
"""The options that it has in common with single measurements."""
TCP_SHARE: Range = (0.2, 0.3)
"""What streams of TCP reach of a card's line rate in the user space of these instances."""
EFA_SHARE: Range = (0.8, 1.0)
RATIO: Range = (3.0, 5.0)
FLOW_GBPS = 10
"""The most of one TCP flow on EC2, inside a cluster placement group; 5 outside (EC2 User Guide)."""
THREADS = (3, 16)
"""From this version on iperf3 has a thread for each stream; before, one core serves them all."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    add(parser, SHARED)
    parser.add_argument(
        "--streams", type=counts, default=[1, 4, 8], help="streams of iperf3, one run for each (1 4 8)"
    )
    parser.add_argument(
        "--efa-tool",
        default="fi_rdm_bw",
        choices=("none", "fi_pingpong", "fi_rdm_bw", "fi_rdm_tagged_bw"),
        help="what measures EFA; fi_pingpong has one message in flight (fi_rdm_bw)",
    )
    parser.add_argument("--efa-size", type=size, default=1 << 24, help="bytes of a message over EFA (16M)")
    parser.add_argument("--efa-iterations", type=int, default=100, help="messages over EFA (100)")
    parser.add_argument("--provider", default="efa", help="libfabric's provider for it (efa)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where the record goes")


def counts(text: str) -> list[int]:
    """The numbers in a text, as 1 4 8 or 1,4,8. Raises what argparse reports."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdigit() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"expected numbers of streams, got {text!r}")
    return [int(word) for word in words]


def main(args: argparse.Namespace) -> int:
    """Measure TCP, then EFA; 1 when TCP has no valid result."""
    common = {**DEFAULTS, **{name: getattr(args, name) for name in SHARED}}
    runs = [_run("iperf3", {**common, "streams": count}) for count in args.streams]
    efa: dict[str, Any] | None = None
    if args.efa_tool != "none":
        over = {"provider": args.provider, "size": args.efa_size, "iterations": args.efa_iterations}
        efa = _run(args.efa_tool, {**common, **over})
    every = [*runs, *([efa] if efa else [])]
    result = node_record.made("baseline_bandwidth", args.peer, **summary(runs, efa), runs=every)
    result.update(notes(result))
    node_record.tell(result, lines(result), args.output)
    return 0 if result["valid"] else 1


def _run(tool: str, values: Mapping[str, Any]) -> dict[str, Any]:
    words = commands.words(tool, "client", values)
    print("$ " + " ".join(words), flush=True)
    try:
        figures, about = measured(tool, values)
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return {"tool": tool, "summary": {}, "valid": False, "doubts": [str(error)], "client_argv": words}
    return {**figures, **about}


def summary(tcp: Sequence[Mapping[str, Any]], efa: Mapping[str, Any] | None) -> dict[str, Any]:
    """The figures of the runs: bandwidths in 1e9 bit/s, None with a reason where there is none."""
    by_streams = {str(run.get("streams")): run["summary"]["bandwidth_gbps"] for run in tcp if run["valid"]}
    best = max(by_streams.values(), default=None)
    over_efa, reason = _over_efa(efa)
    return {
        "tcp_bandwidth_gbps": best,
        "tcp_by_streams": by_streams,
        "efa_bandwidth_gbps": over_efa,
        "efa_reason": reason,
        "bandwidth_ratio": over_efa / best if over_efa and best else None,
        "valid": bool(tcp) and all(run["valid"] for run in tcp),
        "doubts": [doubt for run in tcp for doubt in run["doubts"]],
    }


def _over_efa(run: Mapping[str, Any] | None) -> tuple[float | None, str | None]:
    """The bandwidth, or why there is none."""
    if run is None:
        return None, "it was not asked for"
    if not run["valid"]:
        return None, "; ".join(run["doubts"])
    proven = run["fabric"]["proven"]
    if proven != "efa":
        return None, f"{run['tool']} used {proven or run['fabric']['asked'] + ', unproven'}"
    return run["summary"]["bandwidth_gbps"], None


def expected(instance: str | None) -> dict[str, Any] | None:
    """What is expected of an instance type, as ranges; None of one that is not known."""
    if instance not in CARDS:
        return None
    cards, rate = CARDS[instance]
    return {
        "network_cards": cards,
        "line_rate_gbps": rate,
        "tcp_bandwidth_gbps": [share * rate for share in TCP_SHARE],
        "efa_bandwidth_gbps": [share * rate for share in EFA_SHARE],
        "bandwidth_ratio": list(RATIO),
    }


def notes(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected of the instance, and how the figures differ from it: hints, not verdicts."""
    expectation = expected(result["instance_type"])
    return {"expected": expectation, "notes": list(_notes(result, expectation))}


def _notes(result: Mapping[str, Any], expectation: Mapping[str, Any] | None) -> Iterator[str]:
    for name, what in (
        ("tcp_bandwidth_gbps", "TCP"),
        ("efa_bandwidth_gbps", "EFA"),
        ("bandwidth_ratio", "EFA / TCP"),
    ):
        value = result[name]
        if expectation and value is not None:
            low, high = expectation[name]
            if not low <= value <= high:
                way = "below" if value < low else "above"
                of = result["instance_type"]
                yield f"{what}: {value:.1f} is {way} the {low:g} to {high:g} that are expected of {of}"
    single = result["tcp_by_streams"].get("1")
    if single is not None and result["instance_type"] in CARDS and single < FLOW_GBPS / 2 * 1.05:
        yield f"one TCP flow has {single:.1f} Gbit/s: outside a cluster placement group EC2 limits it to 5"
    for run in result["runs"]:
        numbers = re.match(r"(\d+)\.(\d+)", run.get("tool_version") or "")
        if run["tool"] == "iperf3" and numbers and (int(numbers[1]), int(numbers[2])) < THREADS:
            yield f"iperf3 {run['tool_version']} serves all streams with one core, from 3.16 on one each"
            break
    if any(run["tool"] == "fi_pingpong" and run["valid"] for run in result["runs"]):
        yield "fi_pingpong has one message in flight: EFA can do more than that (fi_rdm_bw of fabtests)"


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    for streams, value in result["tcp_by_streams"].items():
        yield f"TCP, {streams} stream{'s'[: streams != '1']}: {value:.2f} Gbit/s"
    over_efa = result["efa_bandwidth_gbps"]
    yield f"EFA: {over_efa:.2f} Gbit/s" if over_efa else f"EFA: none, as {result['efa_reason']}"
    if result["bandwidth_ratio"]:
        yield f"EFA / TCP: {result['bandwidth_ratio']:.1f}"
    yield from (f"not valid: {doubt}" for doubt in result["doubts"])
    yield from (f"note: {note}" for note in result["notes"])

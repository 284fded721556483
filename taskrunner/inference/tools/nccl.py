"""Run nccl-tests on one node or, by mpirun, on several; a result is named by the fabric that is proven."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import nvidia_smi
from ..output import write
from . import node_record
from .nccl_tests import FAILURE
from .options import size
from .process import find, output_of
from .reading import NotAResult, last_words, record
from .registry import parser

PLACES = ("~/nccl-tests/build", "/usr/local/cuda/efa/test-cuda")
MPI_PLACES = ("/opt/amazon/openmpi/bin", "/opt/amazon/openmpi5/bin")
LIBRARIES = ("/opt/amazon/ofi-nccl/lib", "/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu", "/opt/amazon/efa/lib")
NETWORKS = {"efa": "AWS Libfabric", "tcp": "Socket"}
"""NCCL_NET of a fabric. Without it NCCL takes TCP where the plugin is missing, and exits with 0."""
INTERFACES = "^lo,docker"
PATIENCE_S = 30.0
MPI_OPTIONS = (
    "--bind-to none --mca pml ^cm,ucx --mca btl tcp,self --mca btl_tcp_if_exclude lo,docker0"
    " --mca plm_rsh_args"
).split()
SSH_OPTIONS = "-o BatchMode=yes -o StrictHostKeyChecking=accept-new"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("--collectives", default="all_reduce all_gather", help="(all_reduce all_gather)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each node; 0: all (0)")
    parser.add_argument("--min-size", type=size, default=8, help="bytes of the smallest message (8)")
    parser.add_argument("--max-size", type=size, default=128 << 20, help="bytes of the largest one (128M)")
    parser.add_argument("--step-factor", type=factor, default=2, help="from one size to the next (2)")
    parser.add_argument(
        "--nodes", default="", help="addresses of several nodes, this one first; empty: this one"
    )
    parser.add_argument("--fabric", default="efa", choices=tuple(NETWORKS), help="between nodes (efa)")
    parser.add_argument("--tests", default="", metavar="FOLDER", help="where nccl-tests are")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each collective (1800)")
    parser.add_argument("--directory", default="/tmp/nccl-benchmark-results", help="where the texts go")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where the record goes")


def factor(text: str) -> int:
    """A whole number that makes sizes grow. Raises what argparse reports."""
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a number of at least 2, got {text!r}")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Run the collectives one after the other; 1 unless all of them have a valid result."""
    gpus = args.gpus or nvidia_smi.count(patience=PATIENCE_S)
    nodes = args.nodes.replace(",", " ").split()
    if not gpus:
        print("there is no NVIDIA GPU, or its driver does not answer", file=sys.stderr)
        return 1
    runs = [_run(name, gpus, nodes, args) for name in args.collectives.split()]
    result = node_record.made(
        "nccl",
        " ".join(nodes[1:]) or None,
        nodes=nodes,
        gpus_per_node=gpus,
        valid=bool(runs) and all(run["valid"] for run in runs),
        runs=runs,
    )
    node_record.tell(result, (line for run in runs for line in lines(run)), args.output)
    return 0 if result["valid"] else 1


def _run(collective: str, gpus: int, nodes: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    argv, env, missing = command(collective, gpus, nodes, args)
    if missing:
        return {**record(collective), "collective": collective, "valid": False, "doubts": [missing]}
    print("$ " + shlex.join(argv), flush=True)
    began = time.time()
    status, output, errors = output_of(argv, args.timeout, env)
    figures, doubts = record(collective), [] if status == 0 else [f"it ended with status {status}"]
    if status is None:
        doubts = [f"it did not end within {args.timeout:g} s"]
    try:
        figures = parser("nccl-tests")(output)
    except NotAResult as error:
        # The cause may be on the error output alone, among the lines of NCCL's log.
        failure = FAILURE.search(errors)
        said = failure[0] if failure else error if output.strip() else cause(errors)
        doubts.append(f"no result: {said}")
    fabric = proof(errors, args.fabric if nodes else "local")
    if gpus == 1 and not nodes:
        fabric |= {"proven": "local", "evidence": "one GPU: nothing leaves it"}
    if not doubts:
        doubts += [*_missing_sizes(figures, args), *_contradictions(fabric)]
    stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(began))
    path = os.path.join(
        os.path.expanduser(args.directory),
        f"{collective}_{(fabric['proven'] or 'unproven').upper()}_{stamp}.txt",
    )
    write(path, output.rstrip("\n"))
    return {
        **figures,
        "collective": collective,
        "fabric": fabric,
        "argv": argv,
        "status": status,
        "started_at": began,
        "duration_s": round(time.time() - began, 3),
        "valid": not doubts,
        "doubts": doubts,
        "file": path,
        "output": output,
        "errors": errors,
    }


def command(
    collective: str, gpus: int, nodes: Sequence[str], args: argparse.Namespace
) -> tuple[list[str], dict[str, str], str]:
    """The words, what they need in the environment, and what is missing ("" for nothing)."""
    program = f"{collective}_perf{'_mpi' * bool(nodes)}"
    path = find(program, *filter(None, [args.tests]), *PLACES)
    if path is None:
        return [], {}, f"{program} is not installed: run setup-nccl-tests"
    # In the output the log would stand between the rows of the table.
    env = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": "/dev/stderr"}
    words = [path, "-b", str(args.min_size), "-e", str(args.max_size), "-f", str(args.step_factor), "-g"]
    if not nodes:
        return [*words, str(gpus)], env, ""
    mpirun = find("mpirun", *MPI_PLACES)
    if mpirun is None:
        return [], {}, "mpirun is not installed: run the EFA installer, or apt-get install openmpi-bin"
    libraries = [*filter(os.path.isdir, LIBRARIES), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env["NCCL_NET"], env["NCCL_SOCKET_IFNAME"] = NETWORKS[args.fabric], INTERFACES
    if libraries:
        env["LD_LIBRARY_PATH"] = ":".join(libraries)
    hosts = ",".join(f"{node}:{gpus}" for node in nodes)
    run = [mpirun, "-np", str(gpus * len(nodes)), "-N", str(gpus), "--host", hosts, *MPI_OPTIONS, SSH_OPTIONS]
    run += ["--allow-run-as-root"] * (os.geteuid() == 0)
    run += [word for name, value in env.items() for word in ("-x", f"{name}={value}")]
    return [*run, *words, "1"], {}, ""


def cause(errors: str) -> str:
    """Why there is no result: the last words of a program, else what mpirun says between its dashes."""
    text = re.split(r"^-{20,}\n", errors, flags=re.MULTILINE)
    paragraph = " ".join(text[1].strip().partition("\n\n")[0].split()) if len(text) > 1 else ""
    return last_words(text[0]) if text[0].strip() or not paragraph else paragraph


def proof(log: str, asked: str) -> dict[str, Any]:
    """Over which fabric the channels of a log of NCCL went; `proven` is None where it does not tell."""
    try:
        found = parser("nccl-log")(log)
    except NotAResult as error:
        return {"asked": asked, "proven": None, "evidence": str(error), "gpudirect_channels": 0}
    channels = ", ".join(f"{count} over {name}" for name, count in found["channels"].items())
    return {
        "asked": asked,
        "proven": found["fabric"]["proven"],
        "evidence": f"channels: {channels}",
        "gpudirect_channels": found["gpudirect_channels"],
        "nccl_version": found["tool_version"],
    }


def _contradictions(fabric: Mapping[str, Any]) -> Iterator[str]:
    if fabric["proven"] != fabric["asked"] and (fabric["proven"] or fabric["asked"] != "local"):
        went = f"NCCL used {fabric['proven']}" if fabric["proven"] else "NCCL's log does not show it"
        yield f"{fabric['asked']} is asked for, but {went} ({fabric['evidence']})"


def _missing_sizes(figures: Mapping[str, Any], args: argparse.Namespace) -> Iterator[str]:
    at, largest = args.min_size, args.max_size
    there = {row["size_bytes"] for row in figures["rows"]}
    # A size is rounded to what all ranks share.
    if max(there) < largest * 0.99:
        yield f"the largest size is {max(there)} bytes, not {largest}"
    asked = 0
    while at <= largest:
        asked, at = asked + 1, at * args.step_factor
    if len(figures["rows"]) < asked:
        yield f"{len(figures['rows'])} of {asked} sizes were measured"


def lines(run: Mapping[str, Any]) -> Iterator[str]:
    """A run for people."""
    for doubt in run["doubts"]:
        yield f"{run['collective']}: not valid: {doubt}"
    if run["valid"]:
        best = run["summary"].get("max_busbw_gbytes_s")
        speed = f"{best:.2f} GB/s bus bandwidth" if best else "one GPU: no bus"
        first = run["summary"]["latency_us"]
        proven = run["fabric"]["proven"] or "no proven fabric"
        yield f"{run['collective']}: {speed}, {first:.1f} us at the smallest size, over {proven}"
        yield f"  {run['file']}"

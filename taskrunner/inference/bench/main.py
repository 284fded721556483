"""The benchmark as a command: `taskrunner bench URL`, and the same on nodes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from .. import options
from ..endpoint import parse
from ..options import COUNT, COUNT_OR_NONE, SECONDS, SHARE, number, percent
from ..output import write

FAILED, USAGE, UNREACHABLE, INVALID = 1, 2, 3, 1
KEY = "OPENAI_API_KEY"


RESERVED = {
    "model",
    "mode",
    "prompt_tokens",
    "max_tokens",
    "concurrency",
    "rate",
    "warmup",
    "iterations",
    "seed",
    "prefix_share",
    "prefix_cache",
    "fabric",
    "hostnames",
    "began",
    "ended",
    "time_zone",
    "versions",
    "servers",
    "nodes",
    "client",
    "url",
}
"""Metadata that is measured, not given."""


OPTIONS: tuple[options.Option, ...] = (
    ("--model", str, "", "NAME", "name of the model on the server (default: the first one it serves)"),
    ("--prompt-tokens", COUNT, 1024, "N", "prompt length, exactly N tokens"),
    ("--output-tokens", COUNT, 128, "N", "output length, exactly N tokens"),
    ("--requests", COUNT, 30, "N", "number of measured requests"),
    (
        "--until-precision",
        percent,
        0.0,
        "P",
        "continue until the medians of TTFT and TPOT are known to within P, such as 2%%;"
        " --requests is then the minimum",
    ),
    (
        "--most-requests",
        COUNT_OR_NONE,
        0,
        "N",
        "the maximum with --until-precision (default: 10 times --requests)",
    ),
    ("--warmup", COUNT_OR_NONE, 10, "N", "warm-up requests of the same shape, not measured"),
    ("--concurrency", COUNT, 1, "N", "closed loop: N requests at a time"),
    (
        "--request-rate",
        number(0, 1e6, infinite=True),
        0.0,
        "R",
        "open loop: R requests a second, inf: all at once; latency counts from when each was due",
    ),
    (
        "--prefix-share",
        SHARE,
        0.0,
        "S",
        "share of each prompt that is the same in all of them; 0: no cache helps",
    ),
    ("--timeout", SECONDS, 600.0, "S", "seconds for one request"),
    ("--processes", number(1, 256, whole=True), 1, "N", "client processes"),
    (
        "--seed",
        number(0, 2**63 - 1, whole=True),
        None,
        "N",
        "random seed of the prompts (default: another one each time, so that no cache knows them)",
    ),
    ("--max-failures", SHARE, 0.0, "S", "the share of requests that may fail"),
    (
        "--max-lag",
        number(0, 1e3),
        0.01,
        "S",
        "share by which delays of the client itself may change a statistic",
    ),
)
LISTS = (
    ("--slo", "NAME=MS", "limit for the goodput: ttft=200, tpot=50, e2e=5000"),
    ("--prefill", "URL", "a prefill server behind URL, to read its counters"),
    ("--decode", "URL", "a decode server; valid then requires that its KV cache came over the network"),
    ("--unified", "URL", "a server that does both, to read its counters"),
    ("--node", "URL", "a sampler on another machine of the measurement: see `taskrunner sample --help`"),
    ("--meta", "NAME=VALUE", "for the result's metadata: pattern_id=L2-12K-c4"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("url", metavar="URL", help="URL of the server or the proxy")
    options.add(parser, OPTIONS)
    for option, metavar, text in LISTS:
        parser.add_argument(option, action="append", default=[], metavar=metavar, help=text)
    parser.add_argument(
        "--fabric",
        default="",
        metavar="NAME",
        help="the fabric that the KV cache should cross (efa, tcp, ...); network counters verify it",
    )
    parser.add_argument("--no-circumstances", action="store_true", help="do not sample the machine meanwhile")
    parser.add_argument("--constant", action="store_true", help="open loop: uniform, not Poisson")
    parser.add_argument("--text", action="store_true", help="send prompts as text instead of token ids")
    _output(parser)


def import_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to `bench import`."""
    parser.add_argument("file", metavar="FILE", help="a result from vllm bench serve, GuideLLM or LLMPerf")
    _output(parser)


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", "-o", metavar="FILE", help="where the result goes (stdout)")


def main(args: argparse.Namespace) -> int:
    """Measure, write the result, and show it; 0 when it is valid."""
    from ..http_client import NotServed
    from ..serving.fabric import fabric
    from .measure import Settings, measure

    try:
        slo = {name: _limit(name, value) for name, value in map(_pair, args.slo)}
        unknown = set(slo) - {"ttft", "tpot", "e2e"}
        if unknown:
            raise ValueError(f"--slo {unknown.pop()}: expected ttft, tpot or e2e")
        settings = Settings(
            args.url,
            args.model,
            args.prompt_tokens,
            args.output_tokens,
            args.requests,
            args.warmup,
            args.concurrency,
            args.request_rate,
            not args.constant,
            args.prefix_share,
            args.text,
            timeout=args.timeout,
            processes=args.processes,
            seed=args.seed,
            until_precision=args.until_precision,
            most_requests=args.most_requests or 10 * args.requests,
            failures=args.max_failures,
            lag=args.max_lag,
            slo=slo,
            prefill=args.prefill,
            decode=args.decode,
            unified=args.unified,
            nodes=args.node,
            fabric=args.fabric,
            circumstances=not args.no_circumstances,
            metadata=dict(map(_pair, args.meta)),
            api_key=os.environ.get(KEY, ""),
        )
        for url in (args.url, *args.prefill, *args.decode, *args.unified, *args.node):
            parse(url, settings.api_key)
        if args.fabric:
            fabric(args.fabric)
            if not (args.prefill and args.decode) or args.no_circumstances:
                raise ValueError(
                    "--fabric needs --prefill and --decode, and samples of the machine, to prove it"
                )
        taken = RESERVED & settings.metadata.keys()
        if taken:
            raise ValueError(f"--meta {sorted(taken)[0]}: the result has a member of this name already")
        if args.until_precision and args.processes > 1:
            raise ValueError("--until-precision cannot be combined with --processes")
    except ValueError as error:
        return _say(str(error), USAGE)
    try:
        result = measure(settings, ProgressLine())
    except NotServed as error:
        return _say(str(error), FAILED)
    except OSError as error:
        return _say(f"{parse(args.url).url} cannot be reached: {error}", UNREACHABLE)
    return _written(args, result)


def import_(args: argparse.Namespace) -> int:
    """Read a result of another client, write it as one of ours, and show it; 0 when it is valid."""
    from ..results.importers import Unreadable, read

    try:
        return _written(args, read(args.file))
    except Unreadable as error:
        return _say(str(error), USAGE)
    except OSError as error:
        return _say(f"{args.file}: {error.strerror}", USAGE)


def _written(args: argparse.Namespace, result: dict[str, Any]) -> int:
    from ..results.text import reasons, report

    text = json.dumps(result, allow_nan=False)
    if args.output:
        write(args.output, text)
        print(report(result["results"]))
    else:
        print(text)
        for reason in reasons(result["results"]):
            print(reason, file=sys.stderr)
    for note in result["metadata"].get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    return 0 if result["results"]["valid"] else INVALID


def _say(message: str, status: int) -> int:
    print(f"bench: {message}", file=sys.stderr)
    return status


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _limit(name: str, value: str) -> float:
    """A limit of --slo, in milliseconds."""
    try:
        return float(number(0, 1e9, above=True)(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--slo {name}: {error}") from None


class ProgressLine:
    """Progress on stderr: a line that is written over on a terminal, one every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._began = self._last = 0.0
        self._phase = ""
        self._live = sys.stderr.isatty()

    def __call__(self, phase: str, done: int, whole: int, first: float | None) -> None:
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began, self._last = phase, now, now
        if done != whole and now - self._last < (0.5 if self._live else 10.0):
            return
        self._last = now
        left = (now - self._began) / done * (whole - done)
        ttft = "" if first is None else f", TTFT {first * 1e3:.1f} ms"
        text = f"{phase}: {done}/{whole} requests{ttft}, {left:.0f} s left"
        end = "\n" if done == whole or not self._live else ""
        sys.stderr.write(f"\r\x1b[2K{text}{end}" if self._live else text + "\n")
        sys.stderr.flush()

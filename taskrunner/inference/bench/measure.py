"""One measurement: warm up, send, read what came, and say what it was; with all that makes it doubtful."""

from __future__ import annotations

import json
import math
import platform
import re
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import endpoint
from ..circumstances import judge
from ..circumstances.collect import Samplers
from ..endpoint import Endpoint
from ..http_client import TIMEOUT, NotServed, get
from ..results.record import Limits, judged, result, rows
from ..results.schema import VERSION
from ..serving.fabric import fabric
from . import counters
from .connection import Exchange
from .lateness import Lateness
from .load import Load, LoadRun, run, schedule
from .parse import read
from .precision import Enough, Target
from .prompts import Shape, bodies, framed, prompts, vocabulary

NOT_TOLD = (
    "metadata",
    "prefill",
    "decode",
    "unified",
    "nodes",
    "circumstances",
    "slo",
    "output_tokens",
    "prefix_share",
    "api_key",
)


@dataclass
class Settings:
    """What to measure. `url` is asked; `prefill` and `decode` are the servers behind it whose counters are
    read, `nodes` the samplers of other machines. The KV cache is meant to cross `fabric`.

    `slo` has limits in milliseconds for ttft, tpot and e2e. `failures` is the share of requests that may
    fail, `lag` the share by which the client's own lateness may change a statistic. Without a `seed`, one is
    drawn. With `until_precision`, requests are sent until the medians of TTFT and TPOT are known to within
    that share: at least `requests`, at most `most_requests`.
    """

    url: str
    model: str = ""
    prompt_tokens: int = 1024
    output_tokens: int = 128
    requests: int = 30
    warmup: int = 10
    concurrency: int = 1
    rate: float = 0.0
    poisson: bool = True
    prefix_share: float = 0.0
    text: bool = False
    temperature: float = 0.0
    timeout: float = 600.0
    processes: int = 1
    seed: int | None = None
    until_precision: float = 0.0
    most_requests: int = 0
    failures: float = 0.0
    lag: float = 0.01
    slo: dict[str, float] = field(default_factory=dict)
    prefill: list[str] = field(default_factory=list)
    decode: list[str] = field(default_factory=list)
    unified: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    fabric: str = ""
    circumstances: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)
    api_key: str = field(default="", repr=False)


Progress = Callable[[str, int, int, "float | None"], object]
"""Hears of the phase (`warmup`, `measure`), requests done and in all, and the last one's first byte in
seconds.
"""


def measure(settings: Settings, progress: Progress | None = None) -> dict[str, Any]:
    """Measure, and return the result as result.schema.json describes it. Raises OSError, NotServed."""
    base = endpoint.parse(settings.url, settings.api_key)
    seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
    settings = replace(settings, seed=seed)
    patience = min(TIMEOUT, settings.timeout)
    model = settings.model or _model(base, patience)
    shared = round(settings.prompt_tokens * settings.prefix_share)
    shape = Shape(model, settings.prompt_tokens, settings.output_tokens, shared, settings.temperature, seed)
    servers = {
        f"{role}{number}": endpoint.parse(url, settings.api_key)
        for role in ("prefill", "decode", "unified")
        for number, url in enumerate(getattr(settings, role))
    }
    # Not every proxy passes on what asks for the tokenizer.
    tokenizer = next((server for role, server in servers.items() if not role.startswith("decode")), base)
    most = max(settings.requests, settings.most_requests) if settings.until_precision else settings.requests
    whole = settings.warmup + most
    tokens = prompts(shape, vocabulary(tokenizer, model, patience), whole)
    prepared = bodies(shape, tokens, tokenizer, settings.text)
    token = uuid.uuid4().hex[:12]
    raw = [framed(base, body, f"bench-{token}-{number}") for number, body in enumerate(prepared)]
    load = Load(base, settings.concurrency, timeout=settings.timeout)
    if settings.rate:
        offsets = schedule(settings.rate, most, settings.poisson, seed)
        load = load._replace(offsets=offsets)
    warm = load._replace(offsets=(), concurrency=min(settings.concurrency, max(1, settings.warmup)))
    if settings.warmup:
        outcome = run(warm, raw[: settings.warmup], _told(progress, "warmup", settings.warmup))
        bad = [sample for sample in map(read, outcome.exchanges) if sample.error]
        if len(bad) == settings.warmup:
            raise NotServed(f"{base.url}: all warm-up requests failed: {bad[0].error}: {bad[0].detail}")
    with _samplers(settings, base, servers) as samplers:
        texts = {role: get(server, "/metrics") for role, server in servers.items()}
        before = {role: counters.read(text) for role, text in texts.items()}
        samplers.begin()
        began = time.time()
        done = _told(progress, "measure", most)
        enough = None
        if settings.until_precision:
            enough = Enough(Target(settings.until_precision, settings.requests, settings.output_tokens))
        processes = settings.processes if settings.rate else min(settings.processes, settings.concurrency)
        if processes > 1:
            runs = _split(load, raw[settings.warmup :], processes)
        else:
            runs = [run(load, raw[settings.warmup :], done, enough=enough)]
        ended = time.time()
        nodes = samplers.end()
        after, unread = _scraped(servers, before)
    first, last = min(part.began for part in runs), max(part.ended for part in runs)
    samples, stalls = [], []
    for part in runs:
        lateness = Lateness(part.stalls, first, last)
        stalls += lateness.stalls
        samples += [
            read(exchange, settings.prompt_tokens, settings.output_tokens, lateness)
            for exchange in part.exchanges
        ]
    samples.sort(key=lambda sample: sample.began)
    deltas = {role: counters.grown(before[role], after[role]) for role in servers}
    metadata = {**_metadata(settings, model, began, ended), **settings.metadata}
    metadata["client"]["realtime"] = all(part.realtime for part in runs)
    metadata["client"]["processes"] = len(runs)
    metadata["iterations"] = len(samples)
    metadata["prefix_cache"] = next(
        (counters.prefix_caching(text) for role, text in texts.items() if not role.startswith("decode")), None
    )
    limits = Limits(settings.failures, settings.lag, settings.slo, settings.prefix_share)
    lag = Lateness(stalls, first, last).told()
    results = result(samples, last - first, limits, lag, deltas, bool(settings.decode))
    results["invalid_because"] += unread
    return {
        "version": VERSION,
        "metadata": metadata,
        "results": results,
        "requests": rows(samples, first),
        "circumstances": _circumstances(settings, servers, nodes, samplers.missing, metadata, results),
    }


def _scraped(
    servers: Mapping[str, Endpoint], before: dict[str, dict[str, float]]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The servers' counters at the end, and why those of some are not known: such a server may be gone."""
    scrapes, why = {}, []
    for role, server in servers.items():
        try:
            scrapes[role] = counters.scrape(server)
        except (OSError, NotServed) as error:
            scrapes[role] = before[role]
            why.append(f"{role}: its counters cannot be read after the measurement: {error}")
    return scrapes, why


def _samplers(settings: Settings, base: Endpoint, servers: Mapping[str, Endpoint]) -> Samplers:
    if not settings.circumstances:
        return Samplers(None, ())
    return Samplers(
        [base.port, *(server.port for server in servers.values())], settings.nodes, settings.api_key
    )


def _circumstances(
    settings: Settings,
    servers: Mapping[str, Endpoint],
    nodes: dict[str, Any],
    missing: Mapping[str, str],
    circumstances: dict[str, Any],
    results: dict[str, Any],
) -> dict[str, Any]:
    """What the samples say, written into the metadata and the reasons of a result. Whatever a node has told,
    the result is kept.
    """
    found: dict[str, Any] = {}
    try:
        if settings.circumstances:
            found["nodes"] = nodes
            circumstances["nodes"] = {name: answer.pop("node") for name, answer in nodes.items()}
            circumstances["servers"] = _seen(servers, nodes, circumstances["nodes"])
            results["doubtful_because"] += judge.doubts(nodes, circumstances["nodes"], missing)
            if settings.fabric and settings.decode and settings.prefill:
                found["fabric"] = _proofs(settings.fabric, servers, nodes, circumstances["nodes"], results)
    except Exception as error:
        results["doubtful_because"].append(f"the samples cannot be judged: {type(error).__name__}: {error}")
    judged(results)
    return found


def _seen(
    servers: Mapping[str, Endpoint], nodes: Mapping[str, Any], circumstances: Mapping[str, Any]
) -> dict[str, Any]:
    """What the samplers have seen of each server, by role; taken out of what they told."""
    by_port = {name: answer.pop("servers") for name, answer in nodes.items()}
    return {
        role: {"url": server.url, "node": name, **seen[str(server.port)]}
        for role, server in servers.items()
        for name, seen in by_port.items()
        if judge.has(name, circumstances[name], server.host) and str(server.port) in seen
    }


def _proofs(
    named: str,
    servers: Mapping[str, Endpoint],
    nodes: Mapping[str, Any],
    circumstances: Mapping[str, Any],
    results: dict[str, Any],
) -> list[dict[str, Any]]:
    """For each host that decodes, whether its KV bytes crossed the fabric; the reasons go to the results."""
    prefills = [server.host for role, server in servers.items() if role.startswith("prefill")]
    moved: dict[str, float] = {}
    for role, deltas in results["kv_transfer"]["servers"].items():
        if role.startswith("decode"):
            host = servers[role].host
            moved[host] = moved.get(host, 0.0) + deltas.get("bytes", 0.0)
    counted_by, proofs = fabric(named)["counted_by"], []
    for host, count in moved.items():
        proof, invalid, doubtful = judge.proof(
            judge.Way(named, counted_by, prefills, host), count, nodes, circumstances
        )
        proofs.append(proof)
        results["invalid_because"] += invalid
        results["doubtful_because"] += doubtful
    return proofs


def _model(server: Endpoint, timeout: float) -> str:
    try:
        return str(json.loads(get(server, "/v1/models", timeout))["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise NotServed(f"{server.url}/v1/models lists no model: give --model NAME") from error


def _told(progress: Progress | None, phase: str, whole: int) -> Callable[[Exchange], object] | None:
    if progress is None:
        return None
    count = 0

    def done(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        first = next((at for at, data in exchange.pieces if b"data:" in data), None)
        progress(phase, count, whole, None if first is None else first - exchange.scheduled)

    return done


def _split(load: Load, requests: Sequence[bytes], processes: int) -> list[LoadRun]:
    """The same load from several processes that begin at one time: their clock is the machine's."""
    import multiprocessing

    start = time.perf_counter() + 1.0
    parts = [
        (
            load._replace(
                concurrency=len(range(number, load.concurrency, processes)),
                offsets=load.offsets[number::processes],
            ),
            requests[number::processes],
        )
        for number in range(processes)
    ]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return pool.starmap(run, [(share, part, None, start) for share, part in parts if part])


VERSION_FILE = Path(__file__).parents[2] / "_version.py"
"""Of taskrunner: beside this package here and on nodes."""


def _versions() -> dict[str, str]:
    """Versions of taskrunner and of what the client's times depend on."""
    match = re.search(r'"([0-9][^"]*)"', VERSION_FILE.read_text()) if VERSION_FILE.exists() else None
    return {
        "taskrunner": match[1] if match else "",
        **{name: version(name) for name in ("uvloop", "httptools", "numpy")},
    }


def _metadata(settings: Settings, model: str, began: float, ended: float) -> dict[str, Any]:
    metadata = asdict(settings)
    for name in NOT_TOLD:
        del metadata[name]
    metadata["url"] = endpoint.parse(settings.url).url  # without credentials
    if settings.rate == math.inf:
        metadata["rate"] = "inf"  # JSON has no such number
    return {
        **metadata,
        "model": model,
        "max_tokens": settings.output_tokens,
        "iterations": settings.requests,
        "mode": "disaggregated" if settings.decode else "unified",
        "prefix_share": settings.prefix_share,
        "hostnames": [socket.gethostname()],
        "versions": _versions(),
        "client": {"python": platform.python_version(), "kernel": platform.release()},
        "began": round(began, 3),
        "ended": round(ended, 3),
        "time_zone": time.strftime("%z"),
    }

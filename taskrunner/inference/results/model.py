"""What a result record contains, as types: result.schema.json is made of them, and files are checked by them.

`python -m taskrunner.inference.results.model` prints the schema.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .schema import TOO_SMALL

Interval = tuple[float, float | None] | Literal["n too small"]
Ms = Annotated[float, Field(description="milliseconds")]
OfThisStart = Annotated[
    Interval,
    Field(description="95 % interval of this start of the servers: another start may lie outside of it"),
]


class Part(BaseModel):
    """Part of a record; what is not named here may be added."""

    model_config = ConfigDict(extra="allow")


class Statistic(Part):
    """What many values say. `raw` has them in the order of the requests; those of the ITL are in the rows."""

    unit: Literal["ms"]
    n: int
    mean: Ms = 0.0
    stdev: Ms = 0.0
    min: Ms = 0.0
    max: Ms = 0.0
    p50: Ms = 0.0
    p90: Ms = 0.0
    p95: Ms = 0.0
    p99: Ms = 0.0
    mean_interval: OfThisStart = TOO_SMALL
    p50_interval: OfThisStart = TOO_SMALL
    p90_interval: OfThisStart = TOO_SMALL
    p95_interval: OfThisStart = TOO_SMALL
    p99_interval: OfThisStart = TOO_SMALL
    raw: list[Ms] = []


class Bimodal(Part):
    """Whether the values come in two kinds; see modes.py for the rule. `modes` are [centre in ms, weight]."""

    cv: float
    is_bimodal: bool
    dip: float | None
    p_value: float | None
    modes: list[tuple[float, float]]


class LoopLag(Part):
    """How late the client itself was: `p50` and `p99` over moments of the window, `share` of it stalled."""

    unit: Literal["ms"]
    stalls: int
    max: Ms
    p50: Ms
    p99: Ms
    share: float


class TtftParts(Part):
    """What the mean TTFT consists of, by the servers' own histograms; see ttft_parts.py."""

    unit: Literal["ms"]
    prefill_queue: Ms
    prefill: Ms = Field(description="contains prefill's copies to a host buffer")
    kv_post: Ms
    kv_transfer: Ms
    decode_queue: Ms = Field(description="the rest of decode's queue time: handshake, polling, copies")
    first_token: Ms = Field(description="from decode's scheduling to its first token")
    other: Ms = Field(description="what no server counts: proxy, network, HTTP, tokenizing")


class Results(Part):
    """The summaries, and whether they can be relied on.

    `valid`: the numbers are of what the record says they are of. `doubtful`: something has disturbed them.
    """

    ttft: Statistic = Field(description="first token - start (open loop: - when it was due)")
    tpot: Statistic = Field(description="(last token - first token) / (output tokens - 1)")
    itl: Statistic = Field(description="gaps between arrivals; intervals by resampling requests")
    e2e_latency: Statistic = Field(description="last token - start")
    proxy_prefill_time: Statistic | None = None
    proxy_kv_extract_time: Statistic | None = None
    send_delay: Statistic | None = Field(None, description="sent - due; 0 in a closed loop")
    ttft_parts: TtftParts | None = None
    ttft_bimodal: Bimodal | None = None
    tpot_bimodal: Bimodal | None = None
    loop_lag: LoopLag | None = None
    duration_ms: Ms = Field(ge=0, description="the measured window in milliseconds")
    throughput_rps: float = Field(ge=0, description="completed requests a second")
    throughput_tps: float = Field(ge=0, description="output tokens a second")
    throughput_total_tps: float = Field(0.0, ge=0, description="prompt and output tokens a second")
    tokens_per_chunk: float = Field(0.0, ge=0)
    goodput: float | None = Field(None, ge=0, le=1, description="share of requests within slo_ms")
    slo_ms: dict[str, Ms] = {}
    completed: int
    failed: int
    errors: dict[str, int] = Field(description="failed requests by kind")
    first_errors: list[str] = []
    kv_transfer: dict[str, Any] = Field({}, description="growth of the servers' own counters")
    valid: bool
    invalid_because: list[str]
    doubtful: bool = False
    doubtful_because: list[str] = []


class Request(Part):
    """One request; milliseconds, `start` from the beginning of the window."""

    start: Ms
    ttft: Ms
    tpot: Ms | None
    e2e: Ms
    itl: list[Ms]
    prompt_tokens: int
    output_tokens: int
    error: str = Field(description='the kind of its failure; "" when it is whole')
    proxy_prefill_time: Ms | None = None
    proxy_kv_extract_time: Ms | None = None


class Metadata(Part):
    """What was measured, and all that is needed to do it again, or to refuse a wrong comparison."""

    model: str
    mode: Literal["unified", "disaggregated"]
    prompt_tokens: int = Field(ge=0)
    max_tokens: int = Field(ge=0)
    concurrency: int = Field(ge=0, description="requests at a time in a closed loop; 0 in an open one")
    rate: float | Literal["inf"] = Field(0.0, description="requests a second in an open loop")
    warmup: int = Field(ge=0)
    iterations: int = Field(ge=0)
    seed: int | None = Field(None, description="of the prompts; another in each run unless it is given")
    prefix_share: float = Field(0.0, description="share of each prompt that is the same in all")
    prefix_cache: bool | None = Field(
        None,
        description="whether the server that reads the prompts has a prefix cache; null: it does not say",
    )
    fabric: str = Field("", description="the network that the KV cache is meant to cross")
    hostnames: list[str] = Field(description="of the client")
    began: float = Field(description="seconds since the epoch")
    ended: float = Field(description="seconds since the epoch")
    time_zone: str = Field("", description="of the client, as ±HH:MM")
    versions: dict[str, str] = Field({}, description="of taskrunner and what the client needs")
    servers: dict[str, Any] = Field(
        {},
        description="by role: command, environment, versions and model, as far as they can be seen",
    )
    nodes: dict[str, Any] = Field({}, description="by name: processors, memory, GPUs, driver, instance type")


class Record(Part):
    """One measurement of a server, or of a pair behind the proxy."""

    version: Literal[2]
    metadata: Metadata
    results: Results
    requests: list[Request] = []
    circumstances: dict[str, Any] = Field({}, description="what was sampled on each node; see circumstances/")


def schema() -> str:
    """The JSON Schema as text."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema(), end="")

"""One request as it was measured, by this client or another."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Sample:
    """One request as measured; times in seconds from its start (`scheduled`). `late` is by how much each of
    its tokens may have been noted too late; empty where the client was on time.

    `error` is empty, or a kind (`http_500`, `connection`, `timeout`, `error_event`, `incomplete`,
    `prompt_length`, `output_length`, `no_tokens`) that is counted; `detail` tells more.
    """

    index: int
    send_delay: float
    ttft: float = 0.0
    e2e: float = 0.0
    itl: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    chunks: int = 0
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    error: str = ""
    detail: str = ""

    @property
    def tpot(self) -> float | None:
        """(last token - first token) / (output tokens - 1); None for a single token."""
        return (self.e2e - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None


def failed(sample: Sample, error: str, detail: str) -> Sample:
    """The same sample as a failure of a kind."""
    sample.error, sample.detail = error, " ".join(detail.split())[:500]
    return sample

"""A vLLM server as it is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Mode = Literal["unified", "producer", "consumer"]
Platform = Literal["gpu", "cpu"]
PORTS = {"unified": 8100, "producer": 8100, "consumer": 8200}
BETWEEN_PORTS = 2500
"""The side channel's port is so far below the server's: 5600 for 8100, and another one for any other."""


class Refused(ValueError):
    """A server like this would not start, or measure nonsense. The text says why and what to do."""


@dataclass(frozen=True)
class Server:
    """What is to be served, and how.

    `address` is this machine's own one, which its peers reach, and the only one at which it listens; never
    the peer's. `max_model_len` of 0 is
    computed from `prompt_tokens` and `output_tokens`. `native_len` is how long the model was made for;
    beyond, YaRN is needed. `gpu` is a name as nvidia-smi gives it, for the caps; `gpus` are the indices of
    those to use, as CUDA_VISIBLE_DEVICES has them, "" for all. `gpu_memory` of 0 is 0.9. `enforce_eager`
    of None is vLLM's own default: with CUDA graphs on a GPU. `lease` is how long, in seconds, a producer
    keeps a KV cache that nobody fetches. `tuning` is a file of tune/, whose settings the fabric gets.
    """

    model: str
    mode: Mode = "unified"
    fabric: str = "tcp"
    platform: Platform = "gpu"
    vllm: str = "0.32.0"
    address: str = "127.0.0.1"
    port: int = 0
    side_channel_port: int = 0
    max_model_len: int = 0
    prompt_tokens: int = 1024
    output_tokens: int = 128
    native_len: int = 32_768
    rope_theta: float = 1_000_000.0
    prefix_caching: bool | None = None
    cross_layers: bool = False
    yarn: bool = False
    tensor_parallel: int = 1
    gpu: str = ""
    gpus: str = ""
    gpu_memory: float = 0.0
    enforce_eager: bool | None = None
    kv_buffer_device: str = ""
    kv_cache_bytes: int = 0
    lease: int = 300
    tuning: str = ""
    extra: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, get_args(Mode)),
            ("platform", self.platform, get_args(Platform)),
        ):
            if value not in allowed:
                raise Refused(f"{name} {value!r}: expected one of {', '.join(allowed)}")
        if not self.model:
            raise Refused("no model is given")

    @property
    def listens(self) -> int:
        """The port of its HTTP server."""
        return self.port or PORTS[self.mode]

    @property
    def side_channel(self) -> int:
        """The port where peers ask for what NIXL needs to connect."""
        return self.side_channel_port or self.listens - BETWEEN_PORTS

    @property
    def disaggregated(self) -> bool:
        return self.mode != "unified"

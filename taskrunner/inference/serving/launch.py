"""The command and environment of a vLLM server, and the rules by which it is ready or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ..endpoint import bracketed
from .description import Refused, Server
from .fabric import fabric, tuned
from .lengths import cap, max_model_len
from .versions import doubt_about, has

WHOLE_GPU = 0.9
"""The share of a GPU's memory that a server takes which has it for itself: vLLM's own default."""
READY_TIMEOUT = 900
"""Seconds: 32B parameters take long to load."""
FAIL_ON = (
    "torch\\.OutOfMemoryError",
    "CUDA out of memory",
    "Cannot allocate memory",
    "KV cache is needed, which is larger than the available",
    "No available memory for the cache blocks",
    "AssertionError: Error in memory profiling",
    "is less than desired GPU memory utilization",
    "ValueError: .*max.(model|seq).len",
    "RuntimeError: .*CUDA",
    "unrecognized arguments:",
    "nixlNotFoundError",
    "validation errors? for KVTransferConfig",
    "Repo id must be in the form",
    "is not a valid model identifier",
    "serve: model .*: no such folder",
    "couldn't connect to 'https://huggingface.co' to load",
    "EngineCore failed to start",
    "Engine core initialization failed",
    "EngineCore encountered a fatal error",
)
"""Lines of the log after which there is nothing to wait for, those that tell the cause first. Not
`Traceback`: vLLM logs harmless ones.
"""


class Launch(NamedTuple):
    """What to start: the command, what it needs in its environment beside what is there, and what was
    doubtful.
    """

    argv: list[str]
    env: dict[str, str]
    max_model_len: int
    warnings: list[str]


def launch(server: Server, python: str = "python3") -> Launch:
    """How to start it. `python` is that of vLLM's environment. Raises Refused."""
    warnings = [doubt] if (doubt := doubt_about(server.vllm)) else []
    length = _length(server, warnings)
    argv = _program(server, python)
    argv += ["--host", server.address, "--port", str(server.listens), "--max-model-len", str(length)]
    argv += ["--tensor-parallel-size", str(server.tensor_parallel)]
    if server.enforce_eager or (server.enforce_eager is None and server.platform == "cpu"):
        argv += ["--enforce-eager"]
    cached = server.prefix_caching if server.prefix_caching is not None else not server.disaggregated
    argv += ["--enable-prefix-caching" if cached else "--no-enable-prefix-caching"]
    if server.platform == "gpu":
        share = server.gpu_memory or WHOLE_GPU
        argv += [
            "--gpu-memory-utilization",
            f"{share:g}",
            "--max-num-batched-tokens",
            "4096",
            "--enable-chunked-prefill",
            "--trust-remote-code",
        ]
    else:
        argv += ["--dtype", "bfloat16", "--distributed-executor-backend", "uni"]
    if server.kv_cache_bytes:
        argv += ["--kv-cache-memory-bytes", str(server.kv_cache_bytes)]
    if server.yarn:
        argv += ["--hf-overrides", json.dumps(_yarn(server, length))]
    if server.disaggregated:
        argv += ["--kv-transfer-config", json.dumps(_transfer(server, warnings))]
    return Launch(_without(argv, server.extra), _environment(server), length, warnings)


def _without(argv: list[str], extra: tuple[str, ...]) -> list[str]:
    """The arguments with those that are given beside them, without an option that is given there."""
    given = {word.partition("=")[0] for word in extra if word.startswith("--")}
    kept: list[str] = []
    skipping = False
    for word in argv:
        option = word.startswith("--")
        skipping = word in given if option else skipping
        if not skipping:
            kept.append(word)
    return [*kept, *extra]


def _program(server: Server, python: str) -> list[str]:
    if server.platform == "cpu":
        # The CPU wheel has another name than the one that vLLM's own command looks itself up by.
        return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", server.model]
    return [str(Path(python).with_name("vllm")) if "/" in python else "vllm", "serve", server.model]


def _length(server: Server, warnings: list[str]) -> int:
    needed = server.prompt_tokens + server.output_tokens
    length = server.max_model_len or max_model_len(server.prompt_tokens, server.output_tokens)
    most = cap(server.model, server.gpu, server.tensor_parallel)
    if not server.yarn and not server.max_model_len:
        # Longer than need be only costs; longer than the model was made for is nonsense.
        length = max(needed, min(length, server.native_len))
    if most and length > most:
        warnings.append(f"max_model_len {length} is more than {server.gpu} holds: using {most}")
        length = most
    if length < needed:
        raise Refused(
            f"max_model_len {length} is too short for {server.prompt_tokens} + {server.output_tokens} tokens"
        )
    if length > server.native_len and not server.yarn:
        raise Refused(
            f"max_model_len {length} exceeds the model's native length ({server.native_len}): enable YaRN;"
            " with VLLM_ALLOW_LONG_MAX_MODEL_LEN alone, results are meaningless"
        )
    return length


def _yarn(server: Server, length: int) -> dict[str, Any]:
    factor = max(4.0, -(-length // server.native_len))
    scaling: dict[str, Any] = {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": server.native_len,
            "rope_theta": server.rope_theta,
        }
    }
    if has(server.vllm, "max_position_embeddings_for_yarn"):
        scaling["max_position_embeddings"] = length
    return scaling


def _transfer(server: Server, warnings: list[str]) -> dict[str, Any]:
    settings = fabric(server.fabric)
    extra: dict[str, Any] = {"backends": [settings["backend"]], **settings.get("extra_config", {})}
    if has(server.vllm, "kv_lease_duration"):
        extra["kv_lease_duration"] = server.lease
    if server.cross_layers:
        if not has(server.vllm, "enable_cross_layers_blocks"):
            raise Refused(
                f"vLLM {server.vllm} no longer has enable_cross_layers_blocks and would silently ignore it"
            )
        extra["enable_cross_layers_blocks"] = "True"
    device = server.kv_buffer_device or settings["kv_buffer_device"]
    if server.platform == "gpu" and server.fabric == "cpu":
        raise Refused("the fabric cpu is for servers without a GPU: use tcp, or tcp-host")
    if server.platform == "cpu" and device != "cpu":
        raise Refused(
            f"fabric {server.fabric} keeps the KV cache on a GPU; there is none: use the fabric cpu"
        )
    if server.platform == "gpu" and device == "cpu":
        warnings.append(
            f"fabric {server.fabric}: vLLM stages the KV cache in host memory, which takes most of the time"
            " to the first token; measurements are of that, too"
        )
    config: dict[str, Any] = {
        "kv_connector": "NixlConnector",
        "kv_role": f"kv_{server.mode}",
        "kv_buffer_device": device,
        "kv_connector_extra_config": extra,
    }
    if has(server.vllm, "recompute_is_the_default"):
        config["kv_load_failure_policy"] = "fail"  # else decode computes a prompt itself, unseen
    return config


def _environment(server: Server) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "NIXL_LOG_LEVEL": "INFO"}
    if server.disaggregated:
        env.update(fabric(server.fabric)["env"])
        if server.tuning:
            env.update(tuned(server.tuning, server.fabric, server.prompt_tokens))
        env["VLLM_NIXL_SIDE_CHANNEL_HOST"] = server.address
        env["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(server.side_channel)
        if has(server.vllm, "VLLM_NIXL_ABORT_REQUEST_TIMEOUT"):
            env["VLLM_NIXL_ABORT_REQUEST_TIMEOUT"] = str(server.lease)
    if server.gpus:
        env["CUDA_VISIBLE_DEVICES"] = server.gpus
    if server.tensor_parallel > 1:
        env.update(NCCL_IB_DISABLE="0", NCCL_DEBUG="WARN")
    if server.platform == "cpu":
        # One process: between several, wake-ups are lost, and on two cores each costs seconds.
        env.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            OMP_NUM_THREADS="1",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            HF_HUB_OFFLINE="1",
        )
    return env


def service(server: Server, python: str = "python3") -> dict[str, Any]:
    """The `service` of a step that runs it."""
    plan = launch(server, python)
    health = f"http://{bracketed(server.address)}:{server.listens}/health"
    return {
        "name": f"vllm-{server.mode}",
        "command": plan.argv,
        "env": plan.env,
        "fail_on": list(FAIL_ON),
        "ready": {"http": health, "timeout": READY_TIMEOUT},
    }

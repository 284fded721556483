"""Command lines and environments of vLLM on Neuron.

SDK 2.24 to 2.27: NeuronConnector, with a model that is compiled beforehand (Neuron documentation,
"Disaggregated Inference" tutorial). SDK 2.31 and later: NixlConnector over LIBFABRIC (documentation of the
vLLM plugin). Between them there is no disaggregation. Nothing of this has run on the hardware.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

OLD, NEW = ((2, 24), (2, 27)), (2, 31)
ROLES = ("prefill", "decode", "baseline")
BUCKETS = (256, 512, 1024, 2048, 4096, 8192)
COMPILE = """
--model-type llama --task-type causal-lm run --model-path {model} --compiled-model-path {artifacts}
--torch-dtype bfloat16 --tp-degree {tensor_parallel} --batch-size {batch} --ctx-batch-size 1
--tkg-batch-size {batch} --is-continuous-batching --max-context-length {max_len} --seq-len {max_len}
--on-device-sampling --fused-qkv --global-topk 256 --dynamic --top-k 50 --top-p 0.9 --temperature 0.7
--do-sample --sequence-parallel-enabled --qkv-kernel-enabled --attn-kernel-enabled --mlp-kernel-enabled
--cc-pipeline-tiling-factor 1 --pad-token-id 2 --logical-neuron-cores 2
--context-encoding-buckets {context_buckets} --token-generation-buckets {token_buckets}
--apply-seq-ids-mask --enable-bucketing --prompt PROMPT --save-sharded-checkpoint
--attn-block-tkg-nki-kernel-enabled --attn-block-tkg-nki-kernel-cache-update --k-cache-transposed --async-mode
--compile-only
"""
"""The options of inference_demo. Without --apply-seq-ids-mask other sequences' KV cache is overwritten."""
SERVE = """
-m vllm.entrypoints.openai.api_server --model {model} --max-num-seqs {batch} --max-model-len {max_len}
--tensor-parallel-size {tensor_parallel} --device neuron --use-v2-block-manager --override-neuron-config {{}}
"""
CORES = 64
"""Logical cores of a trn2.48xlarge at two physical cores each."""
BOOTSTRAP_PORT = 45645
SIDE_PORTS = {"prefill": 5559, "decode": 5659}


class Refused(ValueError):
    """A description of servers that cannot run; says why."""


class Asked(NamedTuple):
    """What is to be served: `prefill` and `decode` are the nodes' addresses, `single` says both are one."""

    model: str
    sdk: str
    tensor_parallel: int
    batch: int
    max_len: int
    prefill: str
    decode: str
    single: bool
    artifacts: str
    config: str = "{}"
    """JSON of the new flow's neuron_config."""


class Command(NamedTuple):
    """The words, and the environment beside that of the caller."""

    argv: list[str]
    env: dict[str, str]


def flow(sdk: str) -> str:
    """`old` or `new`. Raises Refused for an SDK without disaggregation."""
    numbers = sdk.split(".")
    if len(numbers) < 2 or not all(part.isdigit() for part in numbers[:2]):
        raise Refused(f"SDK {sdk!r}: expected a version such as 2.27 or 2.31")
    version = (int(numbers[0]), int(numbers[1]))
    if OLD[0] <= version <= OLD[1]:
        return "old"
    if version >= NEW:
        return "new"
    raise Refused(
        f"SDK {sdk} has no disaggregated inference: 2.24 to 2.27 have NeuronConnector, 2.31 and later NIXL"
    )


def artifacts(folder: str, tensor_parallel: int, batch: int) -> str:
    """Where the compiled model goes; the trailing slash is needed."""
    return os.path.join(folder, f"di_traced_model_tp{tensor_parallel}_b{batch}", "")


def compiling(asked: Asked) -> list[str]:
    """The words of inference_demo. Raises Refused where servers compile by themselves."""
    if flow(asked.sdk) == "new":
        raise Refused(
            f"SDK {asked.sdk} compiles at the servers' start: there is nothing to compile beforehand"
        )
    buckets = sorted({*(size for size in BUCKETS if size <= asked.max_len), asked.max_len})
    lists = {
        "{context_buckets}": [str(size) for size in buckets],
        "{token_buckets}": [str(size) for size in buckets if size != BUCKETS[0] or size == asked.max_len],
        "PROMPT": ["test prompt"],
    }
    words: list[str] = []
    for word in COMPILE.split():
        words += lists[word] if word in lists else [word.format(**asked._asdict())]
    return words


def server(role: str, asked: Asked, port: int) -> Command:
    """A server of a role: prefill, decode, or baseline, which does both. Raises Refused."""
    if role not in ROLES:
        raise Refused(f"{role!r} is no role: expected {', '.join(ROLES)}")
    if asked.single and role != "baseline" and asked.tensor_parallel * 2 > CORES:
        raise Refused(
            f"two servers of {asked.tensor_parallel} cores do not fit into the {CORES} of one instance: "
            f"give TENSOR_PARALLEL={CORES // 2}"
        )
    return _old(role, asked, port) if flow(asked.sdk) == "old" else _new(role, asked, port)


def _old(role: str, asked: Asked, port: int) -> Command:
    argv = [word.format(**asked._asdict()) for word in SERVE.split()]
    env = {
        "NEURON_COMPILED_ARTIFACTS": asked.artifacts,
        "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "2",
    }
    if role != "baseline":
        argv += ["--kv-transfer-config", json.dumps(_neuron_connector(role, asked))]
        env |= {
            "NEURON_RT_ASYNC_SENDRECV_BOOTSTRAP_PORT": str(BOOTSTRAP_PORT),
            "NEURON_RT_ASYNC_SENDRECV_EXPERIMENTAL_ENABLED": "1",
            "NEURON_SEND_IP": asked.prefill,
            "NEURON_RECV_IP": asked.decode,
        }
    if asked.single:
        env["NEURON_RT_VISIBLE_CORES"] = _half(role)
    return Command([*argv, "--port", str(port)], env)


def _neuron_connector(role: str, asked: Asked) -> dict[str, object]:
    """Both sides are told the prefill server's address; prefill has the first cores of one instance."""
    consumer = role == "decode"
    return {
        "kv_connector": "NeuronConnector",
        "kv_buffer_device": "cpu",
        "kv_role": "kv_consumer" if consumer else "kv_producer",
        "kv_rank": int(consumer),
        "kv_parallel_size": 2,
        "kv_buffer_size": 2e11,
        "kv_ip": asked.prefill,
        "neuron_core_offset": (str(CORES // 2) if asked.single else "0") if consumer else 0,
    }


def _new(role: str, asked: Asked, port: int) -> Command:
    config = _json(asked.config)
    argv = ["serve", asked.model, "--port", str(port), "--tensor-parallel-size", str(asked.tensor_parallel)]
    env = {
        "VLLM_NEURON_COMPILATION_TIMEOUT": "2400",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "1200",
        "VLLM_ENGINE_READY_TIMEOUT_S": "1800",
    }
    if role != "baseline":
        # The word is cuda, on a machine without one.
        transfer = {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_consumer" if role == "decode" else "kv_producer",
            "kv_buffer_device": "cuda",
            "kv_connector_extra_config": {"backends": ["LIBFABRIC"]},
        }
        argv += ["--no-disable-hybrid-kv-cache-manager", "--kv-transfer-config", json.dumps(transfer)]
        env |= {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": asked.decode if role == "decode" else asked.prefill,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(SIDE_PORTS[role]),
        }
        if asked.single:
            # With shared memory the texts are wrong, and nothing says so.
            env["FI_EFA_ENABLE_SHM_TRANSFER"] = "0"
    if asked.single:
        env["NEURON_VISIBLE_DEVICES"] = _half(role)
    argv += ["--max-num-seqs", str(asked.batch), "--max-model-len", str(asked.max_len)]
    return Command([*argv, "--additional-config", json.dumps({"neuron_config": config})], env)


def _half(role: str) -> str:
    """The cores of a role on one instance; the baseline has prefill's, and so half of the hardware."""
    half = CORES // 2
    return f"{half}-{CORES - 1}" if role == "decode" else f"0-{half - 1}"


def _json(text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Refused(f"the Neuron configuration is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused("the Neuron configuration is no JSON object")
    return value


def router(asked: Asked, prefill_port: int, decode_port: int) -> list[str]:
    """The proxy of the old flow, which listens on 127.0.0.1:8000 and nowhere else. Raises Refused."""
    if flow(asked.sdk) == "new":
        raise Refused(f"SDK {asked.sdk} has the protocol of the project's own proxy: run serve-proxy")
    hosts = ("localhost", "localhost") if asked.single else (asked.prefill, asked.decode)
    words = ["--prefill-ip", hosts[0], "--decode-ip", hosts[1]]
    return [*words, "--prefill-port", str(prefill_port), "--decode-port", str(decode_port)]

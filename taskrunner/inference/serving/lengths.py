"""How long a sequence a server must take, and what its KV cache weighs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

STEPS = ((100_000, 131_072), (50_000, 65_536), (20_000, 34_816), (10_000, 20_480), (0, 16_384))
"""From so many prompt tokens on, so long."""
WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1, "auto": 2}


def max_model_len(prompt_tokens: int, output_tokens: int = 0) -> int:
    """The length for prompts of so many tokens: that of the table, or the next one that holds the answer as
    well.
    """
    wanted = next(length for least, length in STEPS if prompt_tokens >= least)
    whole = prompt_tokens + output_tokens
    return wanted if whole <= wanted else min((n for _, n in STEPS if n >= whole), default=whole)


def cap(model: str, gpu: str, tensor_parallel: int) -> int:
    """The longest that is known to fit this GPU (at 0.9 of its memory); 0: not known."""
    return next(
        (
            int(entry["max_model_len"])
            for entry in _caps()
            if entry["model"] in model and entry["gpu"] in gpu and entry["tensor_parallel"] == tensor_parallel
        ),
        0,
    )


@cache
def _caps() -> list[dict[str, Any]]:
    caps: list[dict[str, Any]] = json.loads(Path(__file__).with_name("caps.json").read_text())
    return caps


def kv_bytes(layers: int, kv_heads: int, head_dim: int, dtype: str = "bfloat16") -> int:
    """Bytes of KV cache a token: a key and a value for each layer and head."""
    return 2 * layers * kv_heads * head_dim * WIDTHS[dtype]


def kv_bytes_of(config: str | Path) -> int:
    """The same, of a model's config.json. Raises OSError, KeyError."""
    model = json.loads(Path(config).read_text())
    heads = model["num_attention_heads"]
    return kv_bytes(
        model["num_hidden_layers"],
        model.get("num_key_value_heads", heads),
        model.get("head_dim") or model["hidden_size"] // heads,
        model.get("dtype") or model.get("torch_dtype") or "bfloat16",
    )

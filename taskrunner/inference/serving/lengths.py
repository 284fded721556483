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
            int(known["max_model_len"])
            for known in _caps()
            if known["model"] in model and known["gpu"] in gpu and known["tensor_parallel"] == tensor_parallel
        ),
        0,
    )


@cache
def _caps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(__file__).with_name("caps.json").read_text())
    return found


def kv_bytes(layers: int, kv_heads: int, head_dim: int, dtype: str = "bfloat16") -> int:
    """Bytes of KV cache a token: a key and a value for each layer and head."""
    return 2 * layers * kv_heads * head_dim * WIDTHS[dtype]


def kv_bytes_of(config: str | Path) -> int:
    """The same, of a model's config.json. Raises OSError, KeyError."""
    about = json.loads(Path(config).read_text())
    heads = about["num_attention_heads"]
    return kv_bytes(
        about["num_hidden_layers"],
        about.get("num_key_value_heads", heads),
        about.get("head_dim") or about["hidden_size"] // heads,
        about.get("dtype") or about.get("torch_dtype") or "bfloat16",
    )

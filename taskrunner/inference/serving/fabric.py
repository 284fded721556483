"""The networks that a KV cache may cross: one file of fabrics/ each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .description import Refused

FABRICS = Path(__file__).parent / "fabrics"


def fabric(name: str) -> dict[str, Any]:
    """What is known of a fabric: `backend` of NIXL, where the KV cache is (`kv_buffer_device`), the
    environment (`env`), and by what its bytes are counted (`counted_by`: net, rdma or memory).
    Raises Refused.
    """
    path = FABRICS / f"{name}.json"
    if "/" in name or not path.is_file():
        names = ", ".join(sorted(file.stem for file in FABRICS.glob("*.json")))
        raise Refused(f"fabric {name!r}: expected one of {names}")
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def tuned(path: str, name: str, prompt_tokens: int) -> dict[str, str]:
    """The settings that tune/ has found best for a fabric, at the prompt length closest to this one. Raises
    Refused.
    """
    try:
        found = json.loads(Path(path).read_text())
        best = {int(tokens): each for tokens, each in found["best"].items() if each is not None}
        closest = best[min(best, key=lambda tokens: abs(tokens - prompt_tokens))]
        settings = {str(name): str(value) for name, value in closest["env"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is not a result of tune-fabric: {error}") from error
    if found["fabric"] != name:
        raise Refused(f"{path} is of the fabric {found['fabric']}, not {name}: run tune-fabric for {name}")
    return settings

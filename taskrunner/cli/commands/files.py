"""`validate`, `lint`, `packs`, `schema`, `compile` and `completion`: nothing of these runs a step."""

from __future__ import annotations

import json
import sys

from taskrunner import api
from taskrunner import packs as packs_
from taskrunner.cli import typed
from taskrunner.cli.commands.run import options
from taskrunner.cli.output.streams import protect
from taskrunner.errors import NotFoundError, Problem

FINDINGS, INVALID = 1, 2


def validate(args: typed.Files) -> int:
    """Check files; every problem of each."""
    return _report(args, [problem for file in args.files for problem in api.validate(file)], INVALID)


def lint(args: typed.Files) -> int:
    """Check files for what is valid, but unwise."""
    from taskrunner.model.lint import lint as look

    found: list[Problem] = []
    status = FINDINGS
    for file in args.files:
        problems = api.validate(file)
        found += problems or look(api.load(file).document)
        status = INVALID if problems else status
    return _report(args, found, status)


def _report(args: typed.Files, problems: list[Problem], status: int) -> int:
    if args.json:
        print(json.dumps([problem.as_dict() for problem in problems], indent=2))
    else:
        for problem in problems:
            print(problem)
        files, count = len(args.files), len(problems)
        summary = f"{count} problem{'s'[: count != 1]}" if problems else "no problems"
        print(f"{summary} in {files} file{'s'[: files != 1]}", file=sys.stderr)
    return status if problems else 0


def packs(args: typed.Json) -> int:
    """List the packs."""
    all_packs = list(packs_.packs())
    if args.json:
        listed = [{"name": p.name, "path": str(p.path), "description": p.description} for p in all_packs]
        print(json.dumps(listed, indent=2))
        return 0
    width = max((len(pack.name) for pack in all_packs), default=0)
    for pack in all_packs:
        print(f"{pack.name:<{width}}  {pack.description}")
    return 0


def schema(args: typed.Schema) -> int:
    """Print the JSON Schema."""
    from taskrunner.inference.results.schema import SCHEMA

    path = SCHEMA if args.kind == "result" else packs_.schema_path(args.kind)
    sys.stdout.write(path.read_text(encoding="utf-8"))
    return 0


def compile_(args: typed.Compile) -> int:
    """Print the plan."""
    plan = api.compile(args.file, **options(args))
    masked = protect([plan]).value(plan)
    masked["variables"].update(dict.fromkeys(plan["secrets"], "***"))
    print(json.dumps(masked, indent=2))
    return 0


def completion(args: typed.Completion) -> int:
    """Print the script for a shell."""
    try:
        import shtab
    except ImportError as error:
        raise NotFoundError("shell completion needs shtab", "pip install shtab") from error
    from taskrunner.cli.arguments import overview

    print(shtab.complete(overview(args.program), args.shell))
    return 0

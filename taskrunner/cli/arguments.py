"""What can be said on the command line: one table of commands, each with its own parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

EXAMPLES = """examples:
  taskrunner quickstart                           half a minute, needs nothing
  taskrunner tasks/setup-environment.json         run a file; what is done already is skipped
  taskrunner setup-environment --dry-run          what would run, and what not, and why
  taskrunner FILE --env MODEL=Qwen/Qwen2.5-7B     give a variable a value
  taskrunner --from 05-install-python             go on with the file run last in this folder
  taskrunner FILE --on ssh://ubuntu@10.0.0.5      the same on another machine
  taskrunner status                               what is running
  taskrunner logs -f                              follow the output of the last run

exit status:
  0 done   1 a step failed   2 bad usage or an invalid file   3 target unreachable
  4 another run of the file is under way   130 cancelled
"""
RUNNER_EXAMPLES = """nodes:
  NODE1_IP, NODE2_IP, ... in the environment (with NODE1_USER, NODE1_PORT, NODE1_PRIVATE, NODE1_ID), and
  nodes.toml or nodes.json in this folder (--nodes FILE). NODE stands for a node's name, a group's, "all",
  or several of them: node1,decode

examples:
  export NODE1_IP=10.0.0.11 NODE2_IP=10.0.0.12 NODE1_USER=ubuntu NODE2_USER=ubuntu
  runner nodes                                    can they be reached, and what do they run?
  runner setup                                    setup-environment.json on all of them
  runner run-node1 measure-efa-producer.json --env NODE1_PRIVATE=172.31.0.11
  runner run all FILE --serial 1 --fail-fast      one after the other, until one fails
  runner attach all                               after a Ctrl-C, or from another terminal
  runner get all /tmp/results/ results/           into results/node1, results/node2

exit status:
  0 done   1 a node failed   2 bad usage or an invalid file   3 a node could not be reached
  4 another run of the file is under way   130 cancelled
"""
HELP = ("-h", "--help", "--version")
RUN_EXAMPLES = """examples:
  taskrunner tasks/setup-environment.json --dry-run
  taskrunner FILE --env PORT=8100 --env HF_TOKEN    HF_TOKEN comes from the environment
  taskrunner FILE --only 03-serve --only 04-measure
  taskrunner FILE --detach && taskrunner attach
  taskrunner FILE --check                           would anything run a second time?
"""

Parser = argparse.ArgumentParser


def parse(argv: Sequence[str], program: str = "taskrunner") -> argparse.Namespace:
    """The arguments; `handler` names the function to call. Exits with 2 and a usage line."""
    known = PROGRAMS[program]
    if argv and argv[0] in known.commands:
        name, rest = argv[0], list(argv[1:])
    elif program == "runner" and argv and argv[0].startswith("run-"):
        # `runner run-node1 FILE`
        name, rest = "run", [argv[0].removeprefix("run-"), *argv[1:]]
    elif not argv or argv[0] in HELP or (program == "runner" and argv[0].startswith("-")):
        parser = overview(program)
        parser.parse_args(list(argv))
        parser.print_help()
        parser.exit(2)
    elif program == "runner":
        from taskrunner.errors import closest

        parser = overview(program)
        parser.error(f"there is no command {argv[0]!r}; {closest(argv[0], known.commands) or 'see --help'}")
    else:
        name, rest = "run", list(argv)
    command = known.commands[name]
    prog = program if name == "run" and argv[0] != "run" and program == "taskrunner" else f"{program} {name}"
    parser = Parser(prog=prog, description=command.help, epilog=command.epilog,
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)  # fmt: skip
    _fill(parser, command)
    return parser.parse_args(rest)


def overview(program: str = "taskrunner") -> Parser:
    """The parser with every command, for --help and for shell completion."""
    from taskrunner import __version__

    about = PROGRAMS[program]
    parser = Parser(
        prog=program, usage=about.usage, description=about.description, epilog=about.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in about.commands.items():
        _fill(commands.add_parser(name, help=command.help, description=command.help), command)
    return parser


def _fill(parser: Parser, command: Command) -> None:
    for add in command.arguments:
        add(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(handler=command.handler)


def _file(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a task file, or the name of a pack")


def _optional_file(parser: Parser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE",
        help="a task file, or the name of a pack; with --from: the file run last here",
    )  # fmt: skip


def _files(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a task file, or a pack's name")


def _variables(parser: Parser) -> None:
    parser.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME=VALUE",
        help="a variable's value; NAME alone takes it from the environment",
    )  # fmt: skip
    parser.add_argument(
        "--env-file", action="append", default=[], metavar="PATH", help="a file of NAME=VALUE lines"
    )


def _selection(parser: Parser) -> None:
    parser.add_argument("--from", dest="start", metavar="STEP", help="start at this step")
    parser.add_argument("--until", metavar="STEP", help="stop after this step")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step")
    parser.add_argument("--reset", action="store_true", help="forget what was done before")
    parser.add_argument("--check", action="store_true",
                        help="after the run, evaluate the guards again: is it idempotent?")  # fmt: skip


def _run(parser: Parser) -> None:
    parser.add_argument("--dry-run", "-n", action="store_true", help="say what would run, run nothing")
    parser.add_argument("--list", "-l", action="store_true", help="list the steps")
    parser.add_argument("--detach", "-d", action="store_true", help="start it and return")


def _target(parser: Parser) -> None:
    parser.add_argument("--on", metavar="TARGET", default="",
                        help="another machine: ssh://user@host:port")  # fmt: skip
    _connection(parser)


def _connection(parser: Parser) -> None:
    parser.add_argument("--accept-new-host-keys", action="store_true",
                        help="take and remember the key of a host that is not known yet")  # fmt: skip
    parser.add_argument("--connect-timeout", type=float, metavar="S", help="seconds to connect in (10)")
    parser.add_argument("--reconnect-timeout", type=float, metavar="S",
                        help="seconds to get a lost connection back in (300)")  # fmt: skip


def _nodes_file(parser: Parser) -> None:
    parser.add_argument("--nodes", metavar="FILE", default="",
                        help="the nodes file (default: nodes.toml or nodes.json here)")  # fmt: skip
    parser.set_defaults(on="")


def _nodes(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", help="a node, a group, or several: node1,decode")
    _nodes_file(parser)


def _all_nodes(parser: Parser) -> None:
    parser.set_defaults(node="all")
    _nodes_file(parser)


def _some_nodes(parser: Parser) -> None:
    parser.add_argument("node", nargs="?", default="all", metavar="NODE", help="default: all nodes")
    _nodes_file(parser)


def _parallel(parser: Parser) -> None:
    parser.add_argument("--max-parallel", type=int, default=0, metavar="N",
                        help="nodes at work at a time (all)")  # fmt: skip
    parser.add_argument("--serial", type=int, default=0, metavar="N",
                        help="N nodes to their end before the next N begin")  # fmt: skip
    parser.add_argument("--fail-fast", action="store_true",
                        help="when a node fails, ask the others to stop and begin no more")  # fmt: skip


def _copied(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file or folder")
    parser.add_argument("target", metavar="TARGET", help="where to; ends with / to put it inside")


def _command(parser: Parser) -> None:
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: a shell")


def _shown(parser: Parser) -> None:
    _json(parser)
    parser.add_argument("--quiet", "-q", action="store_true", help="show failures only")
    parser.add_argument("--verbose", "-v", action="store_true", help="show all output as it comes")


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON, for machines")


def _some_run(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", default="last", metavar="RUN",
                        help="a run's id, or its beginning (default: the last run)")  # fmt: skip


def _logs(parser: Parser) -> None:
    parser.add_argument("step", nargs="?", metavar="STEP", help="only this step")
    parser.add_argument("--run", default="last", metavar="RUN", help="default: the last run")
    parser.add_argument("--follow", "-f", action="store_true", help="go on as long as the run does")


def _count(parser: Parser) -> None:
    parser.add_argument("-n", type=int, default=20, metavar="N", dest="count", help="how many (20)")


def _shell(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell to complete in")


class Command(NamedTuple):
    """A command: what it is for, where it is handled, and its arguments."""

    help: str
    handler: str
    arguments: tuple[Callable[[Parser], None], ...]
    epilog: str = ""


COMMANDS = {
    "run": Command("run a task file", "run:run",
                   (_optional_file, _variables, _selection, _run, _target, _shown), RUN_EXAMPLES),
    "validate": Command("check task files, run nothing", "check:validate", (_files, _json),
                        "example: taskrunner validate tasks/*.json\n"),
    "lint": Command("look for what is valid, but unwise", "check:lint", (_files, _json),
                    "example: taskrunner lint tasks/setup-environment.json\n"),
    "packs": Command("list the task files that come with taskrunner", "check:packs", (_json,)),
    "status": Command("what is running now", "inspect:status", (_target, _json)),
    "logs": Command("show the output of a run's steps", "inspect:logs", (_logs, _target),
                    "example: taskrunner logs -f 05-install-vllm\n"),
    "attach": Command("show a run from its beginning, and follow it", "run:attach",
                      (_some_run, _target, _shown)),
    "cancel": Command("ask a run to stop", "inspect:cancel", (_some_run, _target)),
    "history": Command("list past runs", "inspect:history", (_count, _target, _json)),
    "show": Command("how each step of a run went", "inspect:show", (_some_run, _target, _json)),
    "schema": Command("print the JSON Schema of a task file", "check:schema", ()),
    "compile": Command("print the plan of a task file, secrets masked", "check:compile_",
                       (_file, _variables, _selection)),
    "completion": Command("print a script for shell completion", "check:completion", (_shell,),
                          'example: eval "$(taskrunner completion bash)"\n'),
}  # fmt: skip


_ON_NODES = (_variables, _selection, _run, _parallel, _connection, _shown)

RUNNER_COMMANDS = {
    "setup": Command("set up the nodes: run setup-environment", "nodes:setup", (_some_nodes, *_ON_NODES)),
    "run": Command("run a task file on nodes; also `runner run-NODE FILE`", "nodes:run",
                   (_nodes, _optional_file, *_ON_NODES), RUNNER_EXAMPLES),
    "run-all": Command("run a task file on all nodes", "nodes:run",
                       (_all_nodes, _optional_file, *_ON_NODES)),
    "nodes": Command("list the nodes: reachable, latency, Python, what runs there", "node_tools:nodes",
                     (_some_nodes, _connection, _json)),
    "status": Command("what is running on the nodes", "node_tools:status",
                      (_some_nodes, _connection, _json)),
    "attach": Command("show a node's last run, or of each node, and follow it", "nodes:attach",
                      (_nodes, _some_run, _parallel, _connection, _shown)),
    "logs": Command("show the output of a run's steps on a node", "inspect:logs",
                    (_nodes, _logs, _connection), "example: runner logs node1 -f 05-install-vllm\n"),
    "cancel": Command("ask the runs on nodes to stop", "node_tools:cancel", (_nodes, _some_run, _connection)),
    "history": Command("list past runs on a node", "inspect:history", (_nodes, _count, _connection, _json)),
    "show": Command("how each step of a run on a node went", "inspect:show",
                    (_nodes, _some_run, _connection, _json)),
    "put": Command("copy files to nodes; what is there already is not sent", "node_tools:put",
                   (_nodes, _copied, _connection), "example: runner put all configs/ /tmp/configs\n"),
    "get": Command("copy files from nodes", "node_tools:get",
                   (_nodes, _copied, _connection), "example: runner get node1 /tmp/results results\n"),
    "shell": Command("a shell on a node, or one command", "node_tools:shell",
                     (_nodes, _connection, _command), "example: runner shell node1 nvidia-smi\n"),
}  # fmt: skip


class Program(NamedTuple):
    """One of the two commands."""

    usage: str
    description: str
    epilog: str
    commands: dict[str, Command]


PROGRAMS = {
    "taskrunner": Program(
        "taskrunner [COMMAND] [FILE] [options]",
        "Run JSON task files, step by step, idempotently. "
        "Without a command: run FILE (`taskrunner run --help` has its options).",
        EXAMPLES, COMMANDS,
    ),
    "runner": Program(
        "runner COMMAND [NODE] [FILE] [options]",
        "Run JSON task files on nodes, and look after them there.",
        RUNNER_EXAMPLES, RUNNER_COMMANDS,
    ),
}  # fmt: skip

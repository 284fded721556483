"""What can be said to a command: groups of arguments, each added to a parser by one function."""

from __future__ import annotations

import argparse
from typing import get_args

from taskrunner.log import Level

Parser = argparse.ArgumentParser
Group = argparse._ArgumentGroup


def at_least_one(text: str) -> int:
    """A number of at least 1. Raises what argparse turns into a usage error."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def blocks(text: str) -> int:
    """The same; `extend --blocks +1` has a sign."""
    return at_least_one(text.removeprefix("+"))


def amount(text: str) -> str:
    """A difference: 3 %, 0.03 or 2 ms. Raises what argparse turns into a usage error."""
    from taskrunner.analysis.verdicts import AMOUNT

    match = AMOUNT.fullmatch(text)
    value = float(match[1]) if match else 0.0
    if match is None or not value or (not match[2] and value >= 1):
        raise argparse.ArgumentTypeError(f"expected a difference such as 3 %, 0.03 or 2 ms, got {text!r}")
    return text


def port(text: str) -> int:
    """A port. Raises what argparse turns into a usage error."""
    number = at_least_zero(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"expected a port, got {text!r}")
    return number


def at_least_zero(text: str) -> int:
    """A number of at least 0. Raises what argparse turns into a usage error."""
    return 0 if text == "0" else at_least_one(text)


def seconds(text: str) -> float:
    """A time of more than 0 seconds, at most a year."""
    try:
        if 0 < float(text) <= 31_536_000:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")


def diagnostics(parser: Parser) -> None:
    """Of every command."""
    group = parser.add_argument_group("diagnostics")
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    group.add_argument("--log-level", choices=get_args(Level),
                       help="log connections, retries and transfers to stderr")
    group.add_argument("--log-file", metavar="PATH", help="append the log to this file instead")
    group.add_argument("--log-format", choices=("text", "json"), help="the format of the log (text)")


def file(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a task file, or the name of a pack")


def optional_file(parser: Parser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE",
        help="a task file, or the name of a pack; with --from: the file run last here",
    )


def files(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a task file, or a pack's name")


def variables(parser: Parser) -> None:
    group = parser.add_argument_group("variables")
    group.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME=VALUE",
        help="a variable's value; NAME alone takes it from the environment",
    )
    group.add_argument(
        "--env-file", action="append", default=[], metavar="PATH", help="a file of NAME=VALUE lines"
    )


def selection(parser: Parser) -> None:
    group = parser.add_argument_group("steps")
    group.add_argument("--from", dest="start", metavar="STEP", help="start at this step")
    group.add_argument("--until", metavar="STEP", help="stop after this step")
    group.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step")
    group.add_argument("--reset", action="store_true", help="forget which steps are already done")
    group.add_argument("--check", action="store_true",
                       help="after the run, evaluate the guards again to check idempotence")


def run(parser: Parser) -> None:
    group = parser.add_argument_group("mode")
    group.add_argument(
        "--dry-run",
        "-n",
        action="store_true",
        help="show what would run: only guards (skip_if) run, nothing is copied",
    )
    group.add_argument("--list", "-l", action="store_true", help="list the steps")
    group.add_argument("--detach", "-d", action="store_true", help="start the run and return")


def target(parser: Parser) -> None:
    group = parser.add_argument_group("another machine")
    group.add_argument("--on", metavar="TARGET", help="the target: ssh://user@host:port, ssm://i-... or slurm://JOB/NODE")
    parser.set_defaults(node="")
    _connection(parser, group)


def connection(parser: Parser) -> None:
    _connection(parser, parser.add_argument_group("connection"))


def _connection(parser: Parser, group: Group) -> None:
    group.add_argument("--accept-new-host-keys", action="store_true",
                       help="accept and remember the key of an unknown host")
    group.add_argument(
        "--connect-timeout", type=seconds, metavar="S", help="seconds to wait for a connection (10)"
    )
    group.add_argument("--reconnect-timeout", type=seconds, metavar="S",
                       help="seconds to keep reconnecting (300)")
    aws = account(parser)
    aws.add_argument("--bucket", metavar="NAME",
                     help="S3 bucket for large or secret data (TASKRUNNER_BUCKET)")
    aws.add_argument("--stream", choices=("auto", "poll", "s3"),
                     help="how output is fetched over SSM (auto: by its size)")


def account(parser: Parser) -> Group:
    group = parser.add_argument_group("AWS")
    group.add_argument("--region", metavar="NAME", help="AWS region (default: from the environment)")
    group.add_argument("--profile", metavar="NAME", help="AWS profile (default: from the environment)")
    return group


def nodes_file(parser: Parser) -> None:
    group = parser.add_argument_group("nodes")
    group.add_argument("--via", choices=("ssh", "ssm", "slurm"),
                       help="how to reach nodes that several ways lead to (ssh)")
    group.add_argument("--target", dest="tag", metavar="tag:NAME=VALUE",
                       help="instances with this tag, instead of NODE")
    group.add_argument("--stack", metavar="NAME",
                       help="the nodes of a CloudFormation stack (cdk/ creates one)")
    group.add_argument("--user", metavar="NAME", help="user name on the nodes")
    group.add_argument("--nodes", metavar="FILE", default="",
                       help="the nodes file (default: nodes.toml or nodes.json here)")
    parser.set_defaults(on=None)


def nodes(parser: Parser) -> None:
    parser.add_argument("node", nargs="?", default="", metavar="NODE",
                        help='a node, a group, an instance, several (node1,decode), or "all"')
    nodes_file(parser)


def one_node(parser: Parser) -> None:
    parser.add_argument("node", metavar="NODE", help="one node")
    nodes_file(parser)


def all_nodes(parser: Parser) -> None:
    parser.set_defaults(node="all")
    nodes_file(parser)


def setup_environment(parser: Parser) -> None:
    parser.set_defaults(file="setup-environment")


def some_nodes(parser: Parser) -> None:
    parser.add_argument("node", nargs="?", default="all", metavar="NODE", help="default: all nodes")
    nodes_file(parser)


def parallel(parser: Parser) -> None:
    group = parser.add_argument_group("order")
    group.add_argument("--max-parallel", type=at_least_one, default=0, metavar="N",
                       help="nodes that run at the same time (all)")
    group.add_argument("--serial", type=at_least_one, default=0, metavar="N",
                       help="run in batches of N nodes")
    group.add_argument("--fail-fast", action="store_true",
                       help="when a node fails, stop the others and start no more")


def patience(parser: Parser) -> None:
    parser.add_argument("--timeout", type=seconds, default=900.0, metavar="S",
                        help="longest time to wait, in seconds (900)")


def copied(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file or folder")
    parser.add_argument("target", metavar="TARGET", help="the destination; end it with / to copy into it")


def command(parser: Parser) -> None:
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: a shell")


def shown(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    json(group)
    group.add_argument("--quiet", "-q", action="store_true", help="show failures only")
    group.add_argument("--verbose", "-v", action="store_true", help="show all output as it arrives")


def json(parser: Parser | Group) -> None:
    parser.add_argument("--json", action="store_true", help="JSON, for machines")


def some_run(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", default="last", metavar="RUN",
                        help="a run's id or a prefix of it (default: the last run)")


def logs(parser: Parser) -> None:
    parser.add_argument("step", nargs="?", metavar="STEP", help="only this step")
    parser.add_argument("--run", default="last", metavar="RUN", help="default: the last run")
    parser.add_argument("--follow", "-f", action="store_true", help="follow the output until the run ends")


def count(parser: Parser) -> None:
    parser.add_argument("-n", type=at_least_one, default=20, metavar="N", dest="count", help="how many (20)")


def kind(parser: Parser) -> None:
    parser.add_argument("kind", nargs="?", choices=("task-file", "nodes", "plan", "result"),
                        default="task-file", help="the kind of file (task-file)")


def plan(parser: Parser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="a file, or the name of a plan: phase2")


def plans(parser: Parser) -> None:
    parser.add_argument("plans", nargs="+", metavar="PLAN", help="a file, or the name of a plan")


def scheduled(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help='layers or patterns, or "all" (all)')
    group = parser.add_argument_group("other than the plan says")
    group.add_argument("--warmup", type=at_least_zero, metavar="N", help="requests before each measurement")
    group.add_argument("--iterations", type=at_least_one, metavar="N", help="measured requests")
    group.add_argument("--blocks", type=blocks, metavar="N", help="passes with new starts (extend: more)")
    group.add_argument("--pilot", action="store_true",
                       help="only two starts of one configuration: how much do starts differ?")
    group.add_argument("--infra", action="append", default=[], metavar="NAME=VALUE",
                       help="infrastructure, such as gpu_type=L40S or start_minutes=4")


def generated(parser: Parser) -> None:
    parser.add_argument("--output", "-o", default=".", metavar="DIR", help="where the task files go (here)")
    parser.add_argument("--nodes", dest="count", type=int, choices=(1, 2), default=2, help="nodes (2)")


def sweep(parser: Parser) -> None:
    parser.add_argument("verb", choices=("run", "extend", "status", "list", "attach", "cancel", "collect",
                                         "analyze", "report"),
                        help="run; show results; list starts; follow; stop; fetch; judge; a page")
    scheduled(parser)
    group = parser.add_argument_group("variables")
    group.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE",
                       help="a variable of the serving packs, such as ENV_DIR or MODEL")
    group = parser.add_argument_group("mode")
    group.add_argument("--dry-run", "-n", action="store_true", help="show what would run")
    group.add_argument("--detach", "-d", action="store_true", help="start the sweep and return")
    group.add_argument("--rerun", action="store_true", help="measure again what is measured and valid")
    group.add_argument("--accept-mixed", action="store_true",
                       help="let results of other servers and settings count, too")
    group.add_argument("--only-failed", action="store_true", help="only what has failed or is doubtful")
    group.add_argument("--mlflow", action="store_true", help="send what counts to MLflow, each result once")
    group.add_argument("--pairs", default="", metavar="A:B,C:D",
                       help="pairs of nodes, prefill's and decode's, among which blocks are dealt out")
    group = parser.add_argument_group("as batch jobs")
    group.add_argument("--on", dest="scheduler", choices=("slurm",), default="", help="a job for each pair")
    group.add_argument("--partition", default="", metavar="NAME", help="Slurm's partition (its default)")
    group.add_argument("--account", default="", metavar="NAME", help="Slurm's account (the user's)")
    group.add_argument("--time", default="", metavar="TIME", help="limit of a job, which is requeued then")


def sweep_results(parser: Parser) -> None:
    parser.add_argument("results", metavar="RESULTS", help="a folder of results, such as results/phase2")
    parser.add_argument("--doubtful", action="store_true", help="let doubtful results count, too")


def compared(parser: Parser) -> None:
    parser.add_argument("--against", default="", metavar="OTHER", help="results of an earlier sweep of it")
    parser.add_argument("--margin", type=amount, default="5 %", metavar="AMOUNT", help="what matters (5 %%)")


def page(parser: Parser) -> None:
    parser.add_argument("--output", "-o", default="report.html", metavar="FILE", help="(report.html)")
    parser.add_argument("--lang", choices=("en", "ja"), default="en", help="language of the labels (en)")
    parser.add_argument("--figures", default="", metavar="DIR", help="write figures and table there, too")
    parser.add_argument("--mlflow", action="store_true", help="send page and verdicts to MLflow, too")
    parser.add_argument("--serve", type=port, nargs="?", const=0, metavar="PORT",
                        help="serve the page on this machine instead (a free port)")


def here(parser: Parser) -> None:
    parser.set_defaults(node="", on=None)


def shell(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell to generate it for")


def proxy(parser: Parser) -> None:
    from taskrunner.inference.proxy.main import arguments

    arguments(parser)


def bench(parser: Parser) -> None:
    from taskrunner.inference.bench.main import arguments

    arguments(parser)


def sample(parser: Parser) -> None:
    from taskrunner.inference.circumstances.main import arguments

    arguments(parser)


def tune(parser: Parser) -> None:
    from taskrunner.inference.tune.main import arguments

    arguments(parser)


def tool_output(parser: Parser) -> None:
    from taskrunner.inference.tools.registry import PARSERS

    parser.add_argument("tool", choices=tuple(PARSERS), metavar="TOOL", help=", ".join(PARSERS))
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="its output (default: stdin)")


def imported(parser: Parser) -> None:
    from taskrunner.inference.bench.main import import_arguments

    import_arguments(parser)


def results(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a benchmark result")


def tracking_server(parser: Parser) -> None:
    parser.add_argument("--to", default="", metavar="URI", help="an ARN, http://HOST:PORT, sqlite:////PATH")


def logged(parser: Parser) -> None:
    parser.add_argument("--experiment", default="", metavar="NAME", help="default: nixl-efa")
    parser.add_argument(
        "--artifact", action="append", default=[], metavar="FILE", help="a file to store with the result"
    )


def aws(parser: Parser) -> None:
    parser.add_argument("--instance-type", default="g6e.12xlarge", metavar="TYPE", help="(g6e.12xlarge)")
    parser.add_argument("--count", type=at_least_one, default=2, metavar="N", help="instances (2)")
    parser.add_argument("--zone", default="", metavar="ZONE", help="availability zone (the first one)")
    parser.add_argument("--reserved", action="store_true", help="reserved capacity: no quota needed")

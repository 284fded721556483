"""The commands of `taskrunner` and `runner`, as tables: what each is for, who handles it, what it takes."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES = """examples:
  taskrunner quickstart                           takes half a minute, has no prerequisites
  taskrunner tasks/setup-environment.json         run a file; steps already done are skipped
  taskrunner setup-environment --dry-run          show what would run or be skipped, and why
  taskrunner FILE --env MODEL=Qwen/Qwen2.5-7B     give a variable a value
  taskrunner --from 05-install-python             resume the file run last in this folder
  taskrunner FILE --on ssh://ubuntu@10.0.0.5      the same on another machine
  taskrunner status                               what is running
  taskrunner logs -f                              follow the output of the last run

exit status:
  0 done   1 a step failed   2 bad usage or an invalid file   3 target unreachable
  4 another run of the file is under way   130 cancelled
"""
RUNNER_EXAMPLES = """nodes:
  NODE1_IP, NODE2_IP, ... in the environment (with NODE1_USER, NODE1_PORT, NODE1_PRIVATE, NODE1_ID), and
  nodes.toml or nodes.json in this folder (--nodes FILE). NODE is the name of a node or of a group,
  "all", or several names: node1,decode. NODE:FILE,NODE:FILE runs a file of its own on each

examples:
  export NODE1_IP=10.0.0.11 NODE2_IP=10.0.0.12 NODE1_USER=ubuntu NODE2_USER=ubuntu
  runner nodes                                    show which are reachable, and what they run
  runner setup                                    run setup-environment.json on all of them
  runner run-node1 check-environment --env PEER=172.31.0.12
  runner run all FILE --serial 1 --fail-fast      one at a time, until one fails
  runner run node2:low-level-server,node1:low-level-client   a file of its own on each
  runner experiment phase2 run all                a sweep of measurements
  runner attach all                               after a Ctrl-C, or from another terminal
  runner get all /tmp/results/ results/           into results/node1, results/node2
  runner --stack phase2-nixl-efa-dev-east-1 nodes the nodes of a CloudFormation stack

exit status:
  0 done   1 a node failed   2 bad usage or an invalid file   3 a node is unreachable
  4 another run of the file is under way   130 cancelled
"""
RUN_EXAMPLES = """examples:
  taskrunner tasks/setup-environment.json --dry-run
  taskrunner FILE --env PORT=8100 --env HF_TOKEN    HF_TOKEN comes from the environment
  taskrunner FILE --only 03-serve --only 04-measure
  taskrunner FILE --detach && taskrunner attach
  taskrunner FILE --check                           list steps that would run a second time
"""
MLFLOW_EXAMPLES = """examples:
  taskrunner mlflow log results/*.json              to MLFLOW_TRACKING_ARN or _URI, else kept on this machine
  taskrunner mlflow log r.json --to arn:aws:sagemaker:...:mlflow-tracking-server/NAME
  taskrunner mlflow sync                            send what could not be sent before
  taskrunner mlflow test                            check in eight steps that logging works
  taskrunner mlflow url                             print the URL for a browser
"""
BENCH_EXAMPLES = """examples:
  taskrunner bench http://127.0.0.1:8100 --prompt-tokens 4096 --concurrency 4 -o unified.json
  taskrunner bench http://127.0.0.1:8000 --prefill http://10.0.0.11:8100 --decode http://10.0.0.12:8200
  taskrunner bench URL --request-rate 8 --requests 300 --slo ttft=200 --slo tpot=50
  taskrunner bench import vllm.json -o result.json   from vllm bench serve, GuideLLM or LLMPerf

exit status:
  0 done and valid   1 not valid, or rejected by the server   2 bad usage   3 unreachable
"""


EXPERIMENT_EXAMPLES = """examples:
  %(prog)s cpu-smoke list                    starts, and why; what cannot run; what can be told apart
  %(prog)s phase2 run all                    the whole plan; what is measured and valid is not measured again
  %(prog)s phase2 run L2-EFA                 one layer
  %(prog)s phase2 run p2-unified-4k-c1 --warmup 1 --iterations 1
  %(prog)s phase2 status                     what is measured, and what is not

exit status:
  0 everything is measured   1 something is not   2 bad usage or an invalid plan   3 a node is unreachable
"""


ANALYZE_EXAMPLES = """examples:
  taskrunner analyze results/phase2               ratios, intervals and verdicts of the plan's comparisons
  taskrunner analyze results/phase2 --against ../old/results/phase2 --margin "3 %%"
  taskrunner analyze results/phase2 --json        for machines

exit status:
  0 nothing calls for a closer look   1 an alarm, or slower than the other sweep   2 bad usage
"""


REPORT_EXAMPLES = """examples:
  taskrunner report results/phase2 -o report.html
  taskrunner report results/phase2 --figures figures/   SVG, PNG, CSV and Parquet, too
  taskrunner report results/phase2 --serve              in a browser, renewed while the sweep runs
"""


# Plain classes: named tuples and dataclasses take milliseconds of every start to make.
class Command:
    """A command: what it is for, the function that handles it, the groups of arguments (in options.py) it
    takes, and the commands below it. Without a handler it is one of these only.
    """

    def __init__(
        self,
        help: str,
        handler: str,
        arguments: str,
        epilog: str = "",
        commands: Mapping[str, Command] | None = None,
    ) -> None:
        self.help, self.handler, self.arguments, self.epilog = help, handler, arguments, epilog
        self.commands = commands or {}


COMMANDS = {
    "run": Command("run a task file", "run:run",
                   "optional_file variables selection run target shown", RUN_EXAMPLES),
    "validate": Command("check task files without running them", "files:validate", "files json",
                        "example: taskrunner validate tasks/*.json\n"),
    "lint": Command("report valid but risky constructs", "files:lint", "files json",
                    "example: taskrunner lint tasks/setup-environment.json\n"),
    "packs": Command("list the task files that come with taskrunner", "files:packs", "json"),
    "proxy": Command("run the proxy in front of prefill and decode servers", "inference:proxy", "proxy",
                     "example: taskrunner proxy --prefill http://10.0.0.11:8100 --decode http://10.0.0.12:8200\n"),
    "bench": Command("benchmark a server, or a pair behind the proxy", "inference:bench", "bench",
                     BENCH_EXAMPLES, {
        "import": Command("import a result from vllm bench serve, GuideLLM or LLMPerf",
                          "inference:import_", "imported"),
    }),
    "sample": Command("sample this node for measurements from another one", "inference:sample", "sample",
                      "example: taskrunner sample --host 10.0.0.12 --server 8200\n"),
    "tune": Command("find the fastest settings of a fabric", "inference:tune", "tune",
                    "example: taskrunner tune --fabric tcp --model models/m --prompt-tokens 1024,8192\n"),
    "parse": Command("read what a network or GPU tool has printed", "inference:parse", "tool_output json",
                     "example: iperf3 -c 10.0.0.12 -J | taskrunner parse iperf3 --json\n"),
    "plan": Command("show plans of measurements", "", "", "", {
        "list": Command("list the plans that come with taskrunner", "plan:list_", "json"),
        "validate": Command("check plans", "plan:validate", "plans json"),
        "show": Command("show the starts of a sweep, or the settings of a pattern", "plan:show",
                        "plan scheduled json",
                        "example: taskrunner plan show phase2 --infra gpu_type=L40S\n",
                        ),
        "generate": Command("write the task files of a sweep", "plan:generate", "plan scheduled generated",
                            "example: taskrunner plan generate phase2 -o sweep/\n"),
    }),
    "experiment": Command("run a plan of measurements on this machine", "experiment:experiment",
                          "plan sweep shown here", EXPERIMENT_EXAMPLES),
    "analyze": Command("say what the results of a sweep tell, and how surely", "analyze:analyze",
                       "sweep_results compared json", ANALYZE_EXAMPLES),
    "report": Command("write the results of a sweep as one page", "report:report",
                      "sweep_results page json", REPORT_EXAMPLES),
    "mlflow": Command("send results to MLflow", "", "", MLFLOW_EXAMPLES, {
        "log": Command("log results", "mlflow:log", "results tracking_server logged json", MLFLOW_EXAMPLES),
        "sync": Command("send the results that could not be sent before", "mlflow:sync", "json"),
        "url": Command("print a URL for a browser", "mlflow:url", "tracking_server"),
        "test": Command("check in eight steps that logging works", "mlflow:test", "tracking_server json"),
    }),
    "aws": Command("check an AWS account", "", "", "", {
        "preflight": Command(
            "check whether this account can host the test bed", "aws:preflight", "aws account json",
            "example: taskrunner aws preflight --instance-type p5.48xlarge --region us-east-1\n"),
    }),
    "status": Command("show what is running now", "runs:status", "target json"),
    "logs": Command("show the output of a run's steps", "runs:logs", "logs target",
                    "example: taskrunner logs -f 05-install-vllm\n"),
    "attach": Command("show a run from its beginning, and follow it", "run:attach", "some_run target shown"),
    "cancel": Command("ask a run to stop", "runs:cancel", "some_run target"),
    "history": Command("list past runs", "runs:history", "count target json"),
    "show": Command("show the outcome of each step of a run", "runs:show", "some_run target json"),
    "schema": Command("print the JSON Schema of task files, nodes files, plans or results", "files:schema",
                      "kind"),
    "compile": Command("print the plan of a task file, secrets masked", "files:compile_",
                       "file variables selection"),
    "completion": Command("print a script for shell completion", "files:completion", "shell",
                          'example: eval "$(taskrunner completion bash)"\n'),
}

_ON_NODES = "variables selection run parallel connection shown"

RUNNER_COMMANDS = {
    "setup": Command("set up the nodes: run setup-environment", "nodes_run:run",
                     "some_nodes setup_environment " + _ON_NODES),
    "run": Command("run a task file on nodes; also `runner run-NODE FILE`", "nodes_run:run",
                   "nodes optional_file " + _ON_NODES, RUNNER_EXAMPLES),
    "run-all": Command("run a task file on all nodes", "nodes_run:run",
                       "all_nodes optional_file " + _ON_NODES),
    "experiment": Command("run a plan of measurements on one node or two", "experiment:experiment",
                          "plan sweep nodes_file connection shown", EXPERIMENT_EXAMPLES),
    "nodes": Command("list the nodes: reachability, latency, Python, runs", "nodes:nodes",
                     "some_nodes connection json"),
    "wait-ready": Command("wait until nodes accept commands, and report what blocks them",
                          "wait_ready:wait_ready",
                          "some_nodes patience connection json",
                          "example: runner wait-ready i-0123456789abcdef0 --timeout 600\n"),
    "status": Command("show what is running on the nodes", "nodes:status", "some_nodes connection json"),
    "attach": Command("show and follow a run on a node, or the last run of each", "nodes_run:attach",
                      "nodes some_run parallel connection shown"),
    "logs": Command("show the output of a run's steps on a node", "runs:logs", "one_node logs connection",
                    "example: runner logs node1 -f 05-install-vllm\n"),
    "cancel": Command("ask the runs on nodes to stop", "nodes:cancel", "nodes some_run connection"),
    "history": Command("list past runs on a node", "runs:history", "one_node count connection json"),
    "show": Command("show the outcome of each step of a run on a node", "runs:show",
                    "one_node some_run connection json"),
    "put": Command("copy files to nodes; content already there is not sent", "nodes:put",
                   "nodes copied connection", "example: runner put all configs/ /tmp/configs\n"),
    "get": Command("copy files from nodes", "nodes:get", "nodes copied connection",
                   "example: runner get node1 /tmp/results results\n"),
    "shell": Command("open a shell on a node, or run a command", "nodes:shell", "one_node connection command",
                     "example: runner shell node1 nvidia-smi\n"),
    "completion": Command("print a script for shell completion", "files:completion", "shell",
                          'example: eval "$(runner completion bash)"\n'),
}


class Program:
    """One of the two commands."""

    def __init__(self, usage: str, description: str, epilog: str, commands: Mapping[str, Command]) -> None:
        self.usage, self.description, self.epilog, self.commands = usage, description, epilog, commands


PROGRAMS = {
    "taskrunner": Program(
        "taskrunner [COMMAND] [FILE] [options]",
        "Run JSON task files, step by step, idempotently. "
        "Without a command: run FILE (`taskrunner run --help` lists the options).",
        EXAMPLES, COMMANDS,
    ),
    "runner": Program(
        "runner COMMAND [NODE] [FILE] [options]",
        "Run JSON task files on nodes, and follow or stop the runs.",
        RUNNER_EXAMPLES, RUNNER_COMMANDS,
    ),
}

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskrunner import NotFoundError, TargetError, TaskFileError, UsageError, packs
from taskrunner.fleet.models import generate
from taskrunner.fleet.nodes import Node, load_nodes

FILE = """
# two for prefill, one for decode
[defaults]
user = "ubuntu"
variables = { FABRIC = "efa", PORT = 8000 }

[nodes.prefill-a]
address = "10.0.0.1"
private = "172.31.0.1"
id = "i-01"

[nodes.prefill-b]
address = "10.0.0.2"
port = 2222
user = "ec2-user"
python = "python3.11"
state = "/mnt/nvme/taskrunner"
variables = { PORT = 8001 }

[nodes.decode1]
address = "fe80::1"

[groups.prefill]
nodes = ["prefill-a", "prefill-b"]
variables = { ROLE = "producer", FABRIC = "srd" }
"""


def nodes(text: str, name: str = "nodes.toml", **environ: str) -> object:
    Path(name).write_text(text)
    return load_nodes(environ=environ)


def test_the_committed_schema_is_that_of_the_models() -> None:
    assert json.loads(packs.schema_path("nodes").read_text()) == generate()


def test_a_file() -> None:
    Path("nodes.toml").write_text(FILE)
    found = load_nodes(environ={})
    assert [node.name for node in found.select("prefill,decode1,prefill-a")] == [
        "prefill-a",
        "prefill-b",
        "decode1",
    ]
    assert [node.target for node in found.select("all")] == [
        "ssh://ubuntu@10.0.0.1",
        "ssh://ec2-user@10.0.0.2:2222",
        "ssh://ubuntu@[fe80::1]",
    ]
    second = found.nodes["prefill-b"]
    assert (second.python, second.state) == ("python3.11", "/mnt/nvme/taskrunner")
    assert second.variables == {"FABRIC": "srd", "PORT": "8001", "ROLE": "producer"}
    assert found.nodes["decode1"].variables == {"FABRIC": "efa", "PORT": "8000"}
    assert found.variables() == {
        "PREFILL_A_IP": "10.0.0.1",
        "PREFILL_A_PRIVATE": "172.31.0.1",
        "PREFILL_A_ID": "i-01",
        "PREFILL_A_USER": "ubuntu",
        "PREFILL_B_IP": "10.0.0.2",
        "PREFILL_B_USER": "ec2-user",
        "PREFILL_B_PORT": "2222",
        "DECODE1_IP": "fe80::1",
        "DECODE1_USER": "ubuntu",
    }


def test_the_same_as_json() -> None:
    Path("nodes.json").write_text(
        '{"_why": "x", "nodes": {"a": {"address": "h", "_": 1}}, "groups": {"g": {"nodes": ["a"]}}}'
    )
    assert load_nodes(environ={}).select("g") == [Node("a", address="h")]


def test_the_environment() -> None:
    environ = {
        "NODE10_IP": "10.0.0.10",
        "NODE2_IP": "10.0.0.2",
        "NODE2_USER": "me",
        "NODE2_PORT": "22",
        "NODE2_PRIVATE": "172.31.0.2",
        "NODE3_ID": "i-3",
        "NODE4_PRIVATE": "172.31.0.4",
        "NODE5_IP": "",
    }
    found = load_nodes(environ=environ)
    assert list(found.nodes) == ["node2", "node3", "node10"]
    assert found.nodes["node2"].target == "ssh://me@10.0.0.2:22"
    assert found.variables()["NODE2_PRIVATE"] == "172.31.0.2"
    assert found.nodes["node3"].target == "ssm://i-3"
    with pytest.raises(TargetError, match=r"node3: no address is known \(only the id\)"):
        _ = found.nodes["node3"]._replace(via="ssh").target
    of_job = load_nodes(environ={"NODE1_IP": "gpu-1", "NODE1_JOB": "12"}).nodes["node1"]
    assert of_job.target == "slurm://12/gpu-1"
    with pytest.raises(TargetError, match=r"node1: no job is known \(only the address\)"):
        _ = of_job._replace(via="slurm", job="").target
    with pytest.raises(UsageError, match="NODE1_JOB=12/x: expected the id of a Slurm job"):
        load_nodes(environ={"NODE1_IP": "gpu-1", "NODE1_JOB": "12/x"})
    with pytest.raises(UsageError, match="NODE1_VIA=rsh: expected ssh, ssm, slurm"):
        load_nodes(environ={"NODE1_IP": "h", "NODE1_VIA": "rsh"})
    with pytest.raises(UsageError, match="NODE1_PORT=x: expected a port"):
        load_nodes(environ={"NODE1_IP": "h", "NODE1_PORT": "x"})


def test_the_environment_wins_over_the_file() -> None:
    Path("nodes.toml").write_text('[nodes.node1]\naddress = "old"\nuser = "u"\n[nodes.x]\naddress = "x"\n')
    found = load_nodes(environ={"NODE1_IP": "new", "NODE2_IP": "two"})
    assert [node.target for node in found.select("all")] == ["ssh://u@new", "ssh://x", "ssh://two"]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            '[nodes.a]\nadress = "h"\n',
            ['nodes.toml:2:1: nodes.a.adress: unknown key "adress" in a node (did you mean address?)'],
        ),
        (
            'include = "x"\n[nodes.a]\naddress = "h"\n',
            [
                'nodes.toml:1:1: include: unknown key "include" in the file (known keys: $schema, defaults, nodes, groups)'
            ],
        ),
        (
            '[nodes.a]\nhost = "h"\n',
            ['nodes.toml:2:1: nodes.a.host: unknown key "host" in a node (did you mean address?)'],
        ),
        ("[nodes.a]\nport = 70000\n", ["nodes.toml:2:8: nodes.a.port: expected at most 65535, got 70000"]),
        ("[nodes]\n[groups.g]\nnodes = ['x']\n", ["nodes.toml:3:9: groups.g.nodes[0]: unknown node 'x'"]),
        ("[nodes.a]\n[groups.a]\nnodes = []\n", ["nodes.toml:2:2: groups.a: 'a' is already a node's name"]),
        ("[groups.g]\nnodes = []\n", ['nodes.toml:1:1: "nodes" is missing in the file']),
        ("[nodes.a]\naddress = \n", ["nodes.toml:2:11: not valid TOML: Invalid value"]),
        (
            '[nodes."a b"]\n',
            ['nodes.toml:1:2: nodes.a b: "a b" is not a name: a letter, then letters, digits, _ and -'],
        ),
    ],
)
def test_mistakes(text: str, problems: list[str]) -> None:
    Path("nodes.toml").write_text(text)
    with pytest.raises(TaskFileError) as caught:
        load_nodes(environ={})
    assert [str(problem) for problem in caught.value.problems] == problems


def test_names_that_nobody_knows() -> None:
    with pytest.raises(NotFoundError) as caught:
        load_nodes(environ={}).select("all")
    assert "NODE1_IP" in caught.value.hint
    Path("nodes.toml").write_text(FILE)
    with pytest.raises(NotFoundError) as caught:
        load_nodes(environ={}).select("decode")
    assert "did you mean decode1" in caught.value.hint
    with pytest.raises(NotFoundError):
        load_nodes("none.toml")

"""What runs over Run Command survive, again and again, and what they cost meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskrunner import run, start
from taskrunner.aws.session import NotRegistered
from taskrunner.errors import TargetError
from taskrunner.transports import connect
from taskrunner.transports.ssm import pacing
from tests.aws import ONE, Aws
from tests.helpers import WHOLE, command, wait_for
from tests.transports.test_ssm import Write

RUNS, NODES = 500 if WHOLE else 150, 10
FILES, KILLS = 5 if WHOLE else 2, 20
GROUP = 50


@pytest.mark.slow
@pytest.mark.survival
def test_calls_that_fail_once(cloud: Aws, write: Write) -> None:
    """Each API call of 150 or 500 runs may fail, with 500 or with a reset after it was accepted, and succeeds when
    it is repeated: nothing runs twice, nothing is lost.
    """
    cloud.front.fail_once = 0.5
    ids = [f"i-000000{number:02d}" for number in range(NODES)]
    paths = {}
    for id in ids:
        cloud.add(id)
        ledger = cloud.folder / f"ledger of {id}"
        paths[id] = write(
            {"id": "a", "commands": [f"echo x >> '{ledger}'", "seq 100"]}, file=f"work/{id}.json"
        )
    text = "".join(f"{n}\n" for n in range(1, 101))

    def several(id: str) -> list[str]:
        said = []
        transport = connect(cloud.target(id))
        for _ in range(RUNS // NODES):
            with start(paths[id], on=transport, reset=True) as begun:
                said.append("".join(e["text"] for e in begun.events(output=True) if e["type"] == "output"))
        transport.close()
        return said

    with ThreadPoolExecutor(NODES) as pool:
        for id, said in zip(ids, pool.map(several, ids), strict=True):
            assert said == [text] * (RUNS // NODES)
            assert (cloud.folder / f"ledger of {id}").read_text() == "x\n" * (RUNS // NODES)
    assert cloud.front.failed > RUNS / 5  # what several instances are asked goes in one call


@pytest.mark.slow
@pytest.mark.survival
def test_the_controller_is_killed_again_and_again(cloud: Aws, write: Write) -> None:
    chance = random.Random(7)
    for number in range(FILES):
        ledger = cloud.folder / f"ledger{number}"
        steps = [{"id": f"s{n}", "commands": [f"echo {n} >> '{ledger}'; sleep 0.5"]} for n in range(20)]
        line = command(write(*steps, file=f"work/{number}.json"), "--on", cloud.target())
        for _ in range(KILLS):
            process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(chance.uniform(0.1, 1.1))
            process.kill()
            process.wait()
        subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        assert ledger.read_text().split() == [str(n) for n in range(20)]
    assert cloud.ssm.instances[ONE].most <= 5


@pytest.mark.slow
def test_what_a_quiet_run_costs(cloud: Aws, write: Write) -> None:
    """Calls an hour when nothing happens: at most 1,500 for a node, 4,000 for fifty in a group."""
    cloud.slow()
    quiet = {"id": "a", "commands": ["echo on; exec sleep 600"]}
    with start(write(quiet), on=cloud.target()) as begun:
        events = begun.events(output=True)
        while next(events)["type"] != "output":
            pass
        reader = threading.Thread(target=list, args=(events,))
        reader.start()
        time.sleep(35)  # it looks less often after half a minute
        assert _calls_an_hour(cloud, 25) <= 1_500
        begun.cancel()
        reader.join()

    names = [f"i-000000{number:02d}" for number in range(GROUP)]
    for name in names:
        cloud.add(name, tags={"Role": "decode"})
    line = ["run", "--target", "tag:Role=decode", "--user", cloud.user, str(write(quiet, file="work/g.json"))]
    shown = cloud.folder / "shown"
    with shown.open("wb") as screen:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("runner")), *line], stdout=screen, stderr=screen
        )
        try:
            wait_for(lambda: shown.read_text().count("[RUN]") == GROUP, 150)
            time.sleep(2 * pacing.ROUND_S)  # after two rounds, all nodes are asked at the same time
            assert _calls_an_hour(cloud, pacing.ROUND_S) <= 4_000
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert "UNREACHABLE" not in shown.read_text()


def _calls_an_hour(cloud: Aws, seconds: float) -> float:
    before = len(cloud.front.calls)
    time.sleep(seconds)
    return (len(cloud.front.calls) - before) * 3600 / seconds


@pytest.mark.alone
def test_controllers_leave_places_for_others(cloud: Aws, write: Write) -> None:
    """Three of an instance's five places, at most, however many wait for news there."""
    cloud.slow()
    path = write({"id": "a", "commands": ["echo on; exec sleep 9"]})
    run(write({"id": "a", "commands": ["true"]}, file="work/first.json"), on=cloud.target())
    line = command(path, "--on", cloud.target())
    others = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(5)]
    taken: list[int] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            taken.append(len(cloud.ssm.instances[ONE].running))

    sampler = threading.Thread(target=sample)
    sampler.start()
    texts = [process.communicate(timeout=60)[0].decode() for process in others]
    assert [process.returncode for process in others] == [0] * 5, texts
    over.set()
    sampler.join()
    assert max(taken) <= 5
    assert sum(number > 3 for number in taken) < len(taken) / 5, taken


def test_a_command_that_is_never_delivered(cloud: Aws, write: Write) -> None:
    """The agent is away for longer than the command lives: it is sent again."""
    with start(write({"id": "a", "commands": ["echo on; sleep 4; echo done"]}), on=cloud.target()) as begun:
        events = begun.events(output=True)
        assert next(event for event in events if event["type"] == "output")["text"] == "on\n"
        instance = cloud.ssm.instances[ONE]
        instance.ping = "ConnectionLost"
        # What waits on the node ends with the first news; the command after it is not delivered.
        threading.Timer(6.0, setattr, [cloud.ssm, "ahead", 700.0]).start()
        threading.Timer(8.0, cloud.ssm.reconnect, [ONE]).start()
        assert [event["text"] for event in events if event["type"] == "output"] == ["done\n"]
    details = [f.details for sent in cloud.ssm.commands.values() for f in sent.invocations.values()]
    assert "Delivery Timed Out" in details


def test_an_instance_whose_agent_is_away(cloud: Aws, write: Write) -> None:
    cloud.ssm.instances[ONE].ping = "ConnectionLost"
    with pytest.raises(NotRegistered, match="was not delivered within 2 s") as caught:
        run(write({"id": "a", "commands": ["true"]}), on=connect(cloud.target(), connect_timeout=2.0))
    assert "wait-ready" in caught.value.hint


@pytest.mark.parametrize("status", ["Undeliverable", "Terminated", "AccessDenied", "InvalidPlatform"])
def test_a_command_that_does_not_reach_the_agent(cloud: Aws, write: Write, status: str) -> None:
    """A first one is an error; a later one is sent again."""
    path = write({"id": "a", "commands": ["true"]})
    cloud.ssm.ends_as = status
    with pytest.raises(TargetError, match=status):
        run(path, on=connect(cloud.target(), reconnect_timeout=2.0, connect_timeout=10.0))
    cloud.ssm.ends_as = ""
    transport = connect(cloud.target())
    transport.open()
    assert run(path, on=transport).ok == 1
    with start(path, on=transport, reset=True) as begun:
        cloud.ssm.ends_as = status
        threading.Timer(1.0, setattr, [cloud.ssm, "ends_as", ""]).start()
        assert begun.result().ok == 1


def test_a_run_that_outlives_every_command(cloud: Aws, write: Write) -> None:
    """Its clock put forward by 48 hours, the service ends each command that is under way."""
    with start(write({"id": "a", "commands": ["echo one; sleep 6; echo two"]}), on=cloud.target()) as begun:
        threading.Timer(3.0, setattr, [cloud.ssm, "ahead", 49 * 3600.0]).start()
        events = list(begun.events(output=True))
    assert [event["text"] for event in events if event["type"] == "output"] == ["one\n", "two\n"]
    assert events[-1]["status"] == "ok"  # type: ignore[typeddict-item]
    assert any(
        found.status == "TimedOut"
        for sent in cloud.ssm.commands.values()
        for found in sent.invocations.values()
    )

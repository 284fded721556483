"""A real Slurm cluster of four nodes on this machine, with ports and folders of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import completed, wait_for
from tests.sshd import free_ports

NODES = 4
CONFIG = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
GresTypes=gpu
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=6
SlurmctldTimeout=30
SlurmdTimeout=30
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=pairs Nodes=node[1-4] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=node[1-4] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """One for as long as it is used."""
    # The path of munge's socket may not be long.
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        Path(folder).chmod(0o755)
        made = Cluster(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


class Cluster:
    """Started by `start`, ended by `stop`; `conf` is what SLURM_CONF names.

    Each node has a PID namespace of its own: killing it ends all that runs on it, as when a machine goes down.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf = folder, folder / "slurm.conf"
        for name in ("munge", "state", "log", *(f"spool-node{number}" for number in range(1, NODES + 1))):
            (folder / name).mkdir(parents=True, mode=0o755)
        host = socket.gethostname().split(".")[0]
        controller, *ports = free_ports(1 + NODES)
        nodes = "\n".join(
            f"NodeName=node{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
            " RealMemory=2000 Gres=gpu:1 State=UNKNOWN"
            for number, port in enumerate(ports, 1)
        )
        self.user = getpass.getuser()
        values = {"host": host, "port": controller, "user": self.user, "folder": folder, "nodes": nodes}
        # Any device is one that Slurm can give to a step.
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        self.conf.write_text(CONFIG.format(**values))
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._env = dict(os.environ)  # not that of the test in which a node is started again

    def start(self) -> None:
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        munge = self.folder / "munge"
        places = {"socket": "munge.socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
        words = [f"--{option}={munge / name}" for option, name in {**places, "seed-file": "seed"}.items()]
        subprocess.run(["munged", "--force", *words], check=True)
        subprocess.run(["slurmctld", "-f", self.conf], check=True)
        for number in range(1, NODES + 1):
            self.start_node(f"node{number}")

    def start_node(self, name: str) -> None:
        """Start it, and wait until all that are started are idle."""
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._nodes[name] = subprocess.Popen(
            [*apart, "slurmd", "-D", "-f", self.conf, "-N", name],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        idle = ("sinfo", "-h", "-t", "idle", "-o", "%D")
        wait_for(lambda: self.ask(*idle).strip() == str(len(self._nodes)), 60, "idle")

    def kill_node(self, name: str) -> None:
        """As when a machine goes down."""
        node = self._nodes.pop(name)
        node.kill()
        node.wait()

    def ask(self, *words: str) -> str:
        return completed(words, env={**os.environ, "SLURM_CONF": str(self.conf)}).stdout

    def allocate(self) -> str:
        """A job that holds two nodes and runs nothing: its id."""
        words = ["salloc", "--no-shell", "--nodes=2", "--exclusive"]
        done = completed(words, env={**os.environ, "SLURM_CONF": str(self.conf)}, timeout=60)
        granted = re.search(r"job allocation (\d+)", done.stderr)
        assert granted, done.stderr
        return granted[1]

    def stop(self) -> None:
        self.ask("scancel", "--full", f"--user={self.user}")
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self.ask("squeue", "-h").strip(), 30)
        for name in list(self._nodes):
            self.kill_node(name)
        for path in (self.folder / "slurmctld.pid", self.folder / "munge" / "pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(path.read_text())
                os.kill(pid, signal.SIGTERM)
                deadline = time.monotonic() + 10
                while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                    time.sleep(0.05)

"""A real SLURM on this machine: munged, slurmctld and slurmd of Debian's slurm-wlm, in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
# A requeued job waits for the end of its credentials; 5 seconds are the least.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MaxArraySize=3
KillWait=5
SlurmdTimeout=10
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


class Cluster:
    """Its daemons, and the variable ``SLURM_CONF`` that leads SLURM's commands to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        controller, daemon = _free_ports(2)
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, controller=controller, daemon=daemon))
        # GPUs that are none: SLURM wants a device for each, and deals them out unseen.
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")

    def start(self) -> None:
        options = {
            "socket": "sock",
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        munge = [f"--{name}={self.folder}/munge.{end}" for name, end in options.items()]
        subprocess.run(["munged", "--force", *munge], check=True, capture_output=True)
        subprocess.run(["slurmctld"], check=True, capture_output=True)
        self.start_node()

    def start_node(self) -> None:
        subprocess.run(["slurmd", "-N", "localhost"], check=True, capture_output=True)
        until(lambda: "idle" in self.slurm("sinfo", "-h", "-o", "%T"), 60)

    def kill_node(self) -> None:
        """As a power cut: the daemon, its jobs' shepherds and the jobs themselves are gone at once."""
        pid_file = self.folder / "slurmd.pid"
        doomed = [psutil.Process(int(pid_file.read_text())), *self._steps()]
        for process in doomed:
            with contextlib.suppress(psutil.Error):
                process.kill()
        pid_file.unlink()

    def _steps(self) -> list[psutil.Process]:
        """The shepherds of this cluster's jobs and what they guard."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "slurmstepd":
                    family = [process, *process.children(recursive=True)]
                    if any(one.environ().get("SLURM_CONF") == os.environ["SLURM_CONF"] for one in family):
                        found += family
        return found

    def stop(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.slurm("scancel", "--signal=KILL", "--full", "--user=root")
        for name in ("slurmd.pid", "slurmctld.pid", "munge.pid"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                process = psutil.Process(int((self.folder / name).read_text()))
                process.terminate()
                try:
                    process.wait(10)
                except psutil.TimeoutExpired:
                    process.kill()
        for process in self._steps():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for a fixture; skips where there can be none."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "srun") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)} (Debian: slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons can be started by root alone")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents):  # munged insists that others can reach its socket
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    before = os.environ.get("SLURM_CONF")
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before

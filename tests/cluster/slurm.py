"""A Slurm of two nodes on this machine, as root, over the loopback interface."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munge")
SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
JobRequeue=1
KillWait=20
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
NodeName=node[1-2] NodeHostName={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 CoresPerSocket=8 RealMemory=8000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What this machine lacks."""
    found = [name for name in NEEDED if shutil.which(name) is None]
    return found if os.geteuid() == 0 else [*found, "root"]


class Slurm:
    """Started by ``with``; ``environment`` is for its clients.

    Args:
        folder: Where it keeps everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port = 20_000 + os.getpid() % 20_000
        text = SETTINGS.format(
            host=socket.gethostname().split(".")[0], folder=folder, port=port, first=port + 1, last=port + 2
        )
        (folder / "state").mkdir(parents=True)
        self.settings = folder / "slurm.conf"
        self.settings.write_text(text)
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(self.settings),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

    def __enter__(self) -> "Slurm":
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
        subprocess.run(["slurmctld", "-f", str(self.settings)], check=True, env=self.environment)
        for node in ("node1", "node2"):
            (self.folder / f"spool.{node}").mkdir()
            subprocess.run(["slurmd", "-f", str(self.settings), "-N", node], check=True, env=self.environment)
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-t", "idle", "-o", "%D") != "2":
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--full", "--user=root"], env=self.environment, check=False)
        for file in [*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid"]:
            if file.is_file():
                os.kill(int(file.read_text()), 15)
        time.sleep(1)

    def run(self, *command: str) -> str:
        """What a command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or command[0] == "sinfo", (command, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED, ...; of an array, those of all its jobs."""
        done = subprocess.run(
            ["squeue", "-h", "-t", "all", "-j", job, "-o", "%T"], env=self.environment, capture_output=True, text=True
        )
        return " ".join(sorted(set(done.stdout.split())))

    def wait(self, job: str, seconds: float = 900) -> str:
        """The state in which a job ended."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in ENDED:
            assert time.monotonic() < deadline, self.run("scontrol", "show", "job", job)
            time.sleep(0.5)
        return state

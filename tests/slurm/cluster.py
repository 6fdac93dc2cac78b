"""A real Slurm cluster in a folder: one controller and three nodes of two CPUs on this host, without accounting."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

_CONF = """\
ClusterName=simfer
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=2
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
MpiDefault=none
ReturnToService=2
KillWait=3
SlurmdTimeout=15
MaxArraySize={max_array}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=n[1-3] MaxTime=10 State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty when there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmctld and slurmd of the tests run as root"


class Cluster:
    """Started and stopped by its own process ids.

    Args:
        folder: Empty; holds configuration, state and logs.
        max_array: ``MaxArraySize``.
    """

    def __init__(self, folder: Path, max_array: int = 1001) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        controller, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
            for name, port in zip(NODES, ports, strict=True)
        )
        folder.chmod(0o755)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        self.conf.write_text(
            _CONF.format(host=host, folder=folder, controller=controller, nodes=nodes, max_array=max_array)
        )

    @property
    def environment(self) -> dict[str, str]:
        """For Slurm's commands."""
        return {**os.environ, "SLURM_CONF": str(self.conf), "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        self._start_munge()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait(
            lambda: len(self.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split()) == len(NODES)
        )

    def stop(self) -> None:
        if "slurmctld" in self._processes:
            self.ask("scancel", "--signal=KILL", "--full", "--user=root")
            self.ask("scancel", "--user=root")
            time.sleep(1.0)
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def start_controller(self) -> None:
        self._run("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        self.wait(lambda: "UP" in self.ask("scontrol", "ping"))

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def start_node(self, name: str) -> None:
        self._run(name, ["slurmd", "-D", "-N", name, "-f", str(self.conf)])

    def kill_node(self, name: str) -> None:
        """As a power cut would: its daemon and all jobs of it die without a word."""
        pids = [self._processes[name].pid, *self._job_processes(name)]
        for pid in pids:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self._processes.pop(name).wait()

    def ask(self, *command: str, check: bool = False) -> str:
        """What a command of Slurm's says."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=check
        ).stdout.strip()

    def wait(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s\n{self.ask('squeue', '-a', '-t', 'all')}\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-15:])
            for file in self.folder.glob("*.log")
        )

    def _job_processes(self, node: str) -> list[int]:
        """slurmstepd of a node, and what runs under it."""
        children: dict[int, list[int]] = {}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                variables = (entry / "environ").read_bytes()
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
            ours = f"SLURM_CONF={self.conf}".encode() in variables
            if ours and f"SLURMD_NODENAME={node}".encode() in variables.split(b"\0"):
                found.append(int(entry.name))
        return found

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir()
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for path in (folder, key):
            shutil.chown(path, "munge", "munge")
        folder.chmod(0o755)
        options = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        command = ["munged", "--foreground", *(f"--{name}={folder / file}" for name, file in options.items())]
        self._run("munged", command, user="munge")
        self.wait((folder / "socket").exists, 10)

    def _run(self, name: str, command: list[str], user: str | None = None) -> None:
        with (self.folder / f"{name}.out.log").open("ab") as out:
            self._processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, user=user, start_new_session=True
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        process.wait(20)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

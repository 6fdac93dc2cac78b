"""A real Slurm cluster in a folder: one controller and three nodes of two CPUs on this host, without accounting.

It is started and stopped by its own process ids, and is there for one test file at a time. Where Slurm is not installed these
tests are skipped; with ``SIMFER_REQUIRE_SLURM`` set, as in continuous integration, they fail.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from simfer.pipelines.folder import RunFolder
from simfer.pipelines.job import make_job
from simfer.pipelines.progress import Reporter
from simfer.pipelines.slurm.status import RunStatus, status_of
from simfer.pipelines.slurm.submit import submit
from simfer.pipelines.yaml_file import read_source

NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

_CONF = """\
ClusterName=simfer
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
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
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN"
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
            self.ask("scancel", "--user=root")
        for pid in self.processes("SLURM_CLUSTER_NAME=simfer"):
            self.kill(pid)
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

    @staticmethod
    def kill(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)

    def kill_node(self, name: str) -> None:
        """As a power cut would: its daemon and all jobs of it die without a word."""
        jobs = self.processes(f"SLURMD_NODENAME={name}")
        watchers = [pid for pid in {_parent(job) for job in jobs} if _name(pid) == "slurmstepd"]
        for pid in (self._processes[name].pid, *watchers, *jobs):
            self.kill(pid)
        self._processes.pop(name).wait()

    def ask(self, *command: str, check: bool = False) -> str:
        """What a command of Slurm's says."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=check
        ).stdout.strip()

    def wait(self, condition: Callable[[], Any], seconds: float = 200.0, every: float = 0.2) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if time.monotonic() > deadline or dead:
                raise TimeoutError(
                    f"not within {seconds} s (dead: {dead})\n{self.ask('squeue', '-a', '-t', 'all')}\n{self.logs()}"
                )
            time.sleep(every)

    def logs(self) -> str:
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-15:])
            for file in self.folder.glob("*.log")
        )

    def processes(self, *variables: str) -> list[int]:
        """Processes of this cluster that have these in their environment, such as ``SLURM_JOB_NAME=…``."""
        wanted = {f"SLURM_CONF={self.conf}", *variables}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    there = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                except OSError:  # it has just ended
                    continue
                if wanted <= set(there):
                    found.append(int(entry.name))
        return found

    def workers(self, job: str, task: int | None = None) -> list[int]:
        """Processes of simfer in a job, without the shell around them."""
        variables = (
            [f"SLURM_JOB_ID={job}"] if task is None else [f"SLURM_ARRAY_JOB_ID={job}", f"SLURM_ARRAY_TASK_ID={task}"]
        )
        return [pid for pid in self.processes(*variables) if "python" in _name(pid)]

    quiet = Reporter(None)

    def submit(self, config: dict[str, Any], folder: Path) -> Path:
        """Submit a run, and give its folder."""
        submit(make_job(read_source(config)), RunFolder(folder), self.quiet)
        return folder

    def finish(self, folder: Path, seconds: float = 800.0) -> RunStatus:
        """Wait until nothing of a run is in the queue any more."""
        self.wait(lambda: status_of(folder).over, seconds, every=1.0)
        return status_of(folder)

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
        self._run("munged", command, "--reuid=munge", "--regid=munge", "--clear-groups")
        self.wait((folder / "socket").exists, 10)

    def _run(self, name: str, command: list[str], *options: str) -> None:
        """Start a daemon that ends with this process, however that ends."""
        with (self.folder / f"{name}.out.log").open("ab") as out:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *options, *command],
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := missing():
        if os.environ.get("SIMFER_REQUIRE_SLURM"):
            pytest.fail(f"a Slurm cluster is required: {why}")
        pytest.skip(why)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with (
        ExitStack() as stack,
        (shared / "slurm.lock").open("w") as lock,
    ):  # one cluster at a time, whichever process wants it
        fcntl.flock(lock, fcntl.LOCK_EX)
        # not below pytest's folder, which munge's user may not enter; and paths of sockets must be short
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="simfer-slurm-", ignore_cleanup_errors=True))
        )
        made = Cluster(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(made.conf))
            patch.setenv("OMP_NUM_THREADS", "1")
            try:
                made.start()
                yield made
            finally:
                made.stop()


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()

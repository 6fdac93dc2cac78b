"""One readable ``.sbatch`` file per stage.

Slurm warns the shell of a job before its time is up (``--signal=B:USR1@…``). The shell passes the warning on to simfer, which
saves what it has and ends with 130, and has the job requeued; where nothing may be saved, because its stage keeps no parts or it was
still importing, ``restarts`` times at most. This is
the one path by which jobs are requeued: it works in containers, which have no `scontrol`, in arrays and under `srun`, and neither
Lightning nor submitit hears the signal. Where a node dies or a job is preempted, Slurm requeues it itself.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .settings import ArrayJob, SlurmConfig, StageJob

if TYPE_CHECKING:
    from ..config import LocalConfig

FOLDER = "slurm"
LOGS = "logs/slurm"
_IN_PARTS = ("train", "diagnose", "infer")  # stages that go on where they were, besides arrays

_SCRIPT = """\
#!/bin/bash
# {title}, written by `simfer submit`. To read and to edit; by hand, in the run folder:
#   {by_hand}
{directives}

echo "simfer: {stage} on $(hostname -s), job $SLURM_JOB_ID, start $((${{SLURM_RESTART_COUNT:-0}} + 1)), $(date +%FT%T%z)"
here=$PWD
{setup}
set +eu; cd "$here" || exit  # whatever the lines above have set
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}} MKL_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}
export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}
export SIMFER_GRACE={grace} SIMFER_RESTARTS={restarts}

# {warning} s before the time is up, or before preemption, this shell gets USR1: simfer saves what it has and ends with 130.
# A TERM that comes sooner after it, or without it, is that of `scancel`: the job is not to come back.
warned= cancelled=
trap 'warned=$SECONDS; kill -USR1 "$simfer" 2>/dev/null' USR1
trap '[ $((SECONDS - ${{warned:-$SECONDS}})) -lt {warning} ] && cancelled=1; kill -TERM "$simfer" 2>/dev/null' TERM
{command} &
simfer=$!
while true; do
  wait "$simfer"; code=$?  # a signal ends `wait` before simfer has ended
  [ "$code" -gt 128 ] && kill -0 "$simfer" 2>/dev/null || break
done
echo "simfer: {stage} ended with $code"

job=$SLURM_JOB_ID
[ -n "$SLURM_ARRAY_TASK_ID" ] && job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
again=
if [ -n "$warned" ] && [ "$code" -ge 128 ]; then
  again="its time was up"
elif [ "$code" -eq 137 ] || [ "$code" -eq 134 ] || [ "$code" -eq 139 ] || [ "$code" -eq 135 ]; then  # killed, or crashed
  again="its process was killed"
fi
grep -qs '"state": "failed"' "slurm/tasks/{stage}-$job.json" && again=  # it has said why, and `srun` ended its other processes
if [ "$code" -ne 130 ] || [ -z "$warned" ] || [ -z "{parts}" ]; then  # nothing may be saved, and it may end the same
  if [ -n "$again" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -ge {restarts} ]; then
    [ -z "$warned" ] || echo 'simfer: {stage} is not started again: its time was up before anything was saved: raise its `time`'
    again=
  fi
fi
if [ -n "$again" ] && [ -z "$cancelled" ]; then
  echo "simfer: requeueing $job, because $again"
  scontrol requeue "$job" && sleep 60  # Slurm ends this shell
fi
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class Array:
    """Tasks of an array, and the file that says which shards each owns."""

    tasks: int
    shards: str


def script(run: str, stage: str, local: LocalConfig, array: Array | None = None, does: str | None = None) -> str:
    """The text of a stage's file.

    Args:
        run: Name of the run.
        stage: Its name.
        local: With ``slurm``, what is asked of it, and the devices that train together.
        array: Of simulations, if they are to be simulated by an array.
        does: The command of simfer's that does it; the stage's own when None.
    """
    slurm = local.slurm
    job = slurm.of(stage)
    tasks = tasks_of(stage, local)
    setup = [*([f"umask {slurm.umask}"] if slurm.umask else []), *(job.setup or ())]
    return _SCRIPT.format(
        title=f"{run}: {stage}",
        stage=stage,
        by_hand=f"sbatch {file_of(stage)}",
        directives="\n".join(f"#SBATCH {line}" for line in _directives(run, stage, job, slurm, tasks, array)),
        setup="\n".join(setup),
        grace=max(slurm.warning - 30, slurm.warning // 2),
        warning=slurm.warning,
        restarts=slurm.restarts,
        parts="1" if array or stage in _IN_PARTS else "",
        command=_command(does or _does(stage, array), slurm, tasks),
    )


def file_of(stage: str) -> str:
    """Where a stage's file lies in the run folder."""
    return f"{FOLDER}/{stage}.sbatch"


def log_of(run: str, stage: str, job: str, task: int | None) -> str:
    """Where a job writes, in the run folder."""
    return f"{LOGS}/{run}-{stage}_{job}.out" if task is None else f"{LOGS}/{run}-{stage}_{job}_{task}.out"


class Tasks(NamedTuple):
    """Processes that Slurm is to start."""

    nodes: int
    per_node: int

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.nodes * self.per_node > 1


def tasks_of(stage: str, local: LocalConfig) -> Tasks:
    """One; of a training one for each GPU, or each of ``local.devices``, of each node."""
    if stage != "train":
        return Tasks(1, 1)
    job = local.slurm.of(stage)
    devices = local.devices if isinstance(local.devices, int) else 1
    return Tasks(job.nodes or local.nodes, job.gpus or devices)


def _directives(
    run: str, stage: str, job: StageJob, slurm: SlurmConfig, tasks: Tasks, array: Array | None
) -> list[str]:
    return [
        f"--job-name={run}-{stage}",
        f"--output={log_of(run, stage, '%A', None).replace('%A', '%A_%a' if array else '%j')}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{slurm.warning}",
        "--kill-on-invalid-dep=yes",
        *([_array(array, job)] if array else []),
        *_resources(job, tasks),
        *(job.extra or ()),
    ]


def _array(array: Array, job: StageJob) -> str:
    parallel = job.parallel if isinstance(job, ArrayJob) else None
    return f"--array=0-{array.tasks - 1}" + (f"%{parallel}" if parallel else "")


def _resources(job: StageJob, tasks: Tasks) -> list[str]:
    options = {
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "time": job.time,
        "nodes": tasks.nodes if tasks.several else job.nodes,
        "ntasks-per-node": tasks.per_node if tasks.several or job.nodes else None,
        "cpus-per-task": job.cpus,
        "mem": job.memory,
        "gpus-per-node": job.gpus or None,
    }
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


def _does(stage: str, array: Array | None) -> str:
    return f"slurm-task {stage}" + (f" --shards {array.shards}" if array else "")


def _command(does: str, slurm: SlurmConfig, tasks: Tasks) -> str:
    simfer = slurm.command or shlex.join([sys.executable, "-m", "simfer.pipelines.cli"])
    launch = "srun --kill-on-bad-exit=1 " if tasks.several else ""
    return f"{launch}{simfer} {does}"

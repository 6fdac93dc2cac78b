"""What is asked of Slurm, in YAML: ``local.slurm``, for all stages and for each."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from ...estimators.settings import Settings

_TIME = re.compile(r"\d+|\d+:\d{2}|\d+:\d{2}:\d{2}|\d+-\d+|\d+-\d+:\d{2}|\d+-\d+:\d{2}:\d{2}")
_MEMORY = re.compile(r"\d+[KMGT]?")
_ENDLESS = ("INFINITE", "UNLIMITED")


def minutes_of(time: str) -> float | None:
    """Minutes of a time as sbatch writes it; None where there is no limit."""
    if time in _ENDLESS:
        return None
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, minutes, seconds = 0, *(*parts, 0)[:2]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60


def _time(value: Any) -> Any:
    text = str(value).strip().upper()
    if text in _ENDLESS or (_TIME.fullmatch(text) and minutes_of(text)):
        return text
    raise ValueError(
        "must be minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or "
        f"days-hours:minutes:seconds, as for sbatch; got {value!r}"
    )


def _memory(value: Any) -> Any:
    text = str(value).strip().upper().removesuffix("B").removesuffix("I").replace(" ", "")
    if _MEMORY.fullmatch(text):
        return text
    raise ValueError(f"must be a whole number of megabytes, or one with K, M, G or T, such as `8G`; got {value!r}")


def _lines(value: Any) -> Any:
    return value.strip().splitlines() if isinstance(value, str) else value


def _directives(value: Any) -> Any:
    lines = [str(line).removeprefix("#SBATCH").strip() for line in (_lines(value) or ())]
    if wrong := [line for line in lines if not line.startswith("-")]:
        raise ValueError(f"must be options of sbatch, such as `--mail-type=END`; got {wrong[0]!r}")
    return lines


Time = Annotated[str, BeforeValidator(_time)]
Memory = Annotated[str, BeforeValidator(_memory)]
Lines = Annotated[tuple[str, ...], BeforeValidator(_lines)]
Directives = Annotated[tuple[str, ...], BeforeValidator(_directives)]


class StageJob(Settings):
    """One stage's job, in the words of sbatch; what is not given is that of all stages, or the cluster's own.

    Attributes:
        partition: Where it runs; several, separated by commas, wherever first.
        account: Who pays.
        qos: Quality of service.
        constraint: Features that nodes must have.
        time: Limit: minutes, hours:minutes:seconds or days-hours, as for sbatch. A stage that needs longer is requeued.
        cpus: Of each process.
        memory: Of each node, such as ``8G``.
        gpus: On each node; training takes one process for each.
        nodes: How many; training alone can use several.
        setup: Shell lines before simfer starts: modules, conda, a virtual environment.
        extra: Other options of sbatch, such as ``--mail-type=END``.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: Time | None = None
    cpus: PositiveInt | None = None
    memory: Memory | None = None
    gpus: NonNegativeInt | None = None
    nodes: PositiveInt | None = None
    setup: Lines | None = None
    extra: Directives | None = None


class ArrayJob(StageJob):
    """The simulations' job: an array of tasks, each with shards of its own.

    Attributes:
        array: Tasks at most; as many as there are shards, and the cluster allows, when not given.
        parallel: How many of them may run at a time.
    """

    array: PositiveInt | None = None
    parallel: PositiveInt | None = None


class SlurmConfig(StageJob):
    """Jobs of `simfer submit`: the keys of every stage, and what differs for one.

    Attributes:
        simulate: Of the array.
        train: Of the training.
        diagnose: Of the checks.
        infer: Of the observation's posterior.
        report: Of the report.
        command: How simfer is called on a node, such as ``apptainer exec simfer.sif simfer``; this Python when not given.
        warning: Seconds before the time limit at which a job is told to save what it has.
        restarts: How often a job is started again after its process was killed, by want of memory perhaps.
        umask: Of the files that jobs make, such as ``"0027"``.
        group: Unix group that owns the run folder.
        shared: Whether the run folder is known to be visible on all nodes, wherever it seems to be.
    """

    simulate: ArrayJob = ArrayJob()
    train: StageJob = StageJob()
    diagnose: StageJob = StageJob()
    infer: StageJob = StageJob()
    report: StageJob = StageJob()
    command: str | None = None
    warning: PositiveInt = 120
    restarts: NonNegativeInt = 3
    umask: Annotated[str, Field(pattern="^0?[0-7]{3}$")] | None = None
    group: str | None = None
    shared: bool = False

    def of(self, stage: str) -> StageJob:
        """All that is asked for one stage."""
        own: StageJob = getattr(self, stage)
        common = {name: getattr(self, name) for name in StageJob.model_fields}
        given = {name: value for name, value in own if value is not None}
        return type(own)(**{**common, **given})

    @model_validator(mode="after")
    def _leaves_time_to_work(self) -> SlurmConfig:
        for stage in ("simulate", "train", "diagnose", "infer", "report"):
            time = self.of(stage).time
            minutes = minutes_of(time) if time else None
            if minutes is not None and self.warning > 30 * minutes:
                raise ValueError(
                    f"`warning` must be at most half of every time limit; got {self.warning} s of `time: {time}` for "
                    f"`{stage}`: give a longer time, or a smaller `warning`"
                )
            if stage != "train" and (self.of(stage).nodes or 1) > 1:
                raise ValueError(f"`nodes` must be 1 for `{stage}`, which runs on one: give it under `train`")
        return self

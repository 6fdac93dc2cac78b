"""What the command line prints: plans, status, lists, outcomes."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data import registry
from ..data.errors import MissingFileError, SimferError, SimulatorError, UnknownNameError, did_you_mean
from ..data.layout import Block
from ..data.store import SimulationStore
from ..data.variables import Arrays
from ..diagnostics.symmetry.result import SymmetryCheck
from ..estimators.schedule import budget
from ..simulators.base import HasSymmetry, Simulator
from ..simulators.block import BlockSimulator, Draw
from ..simulators.campaign import Reference
from ..simulators.entries import arguments_text
from ..simulators.imported import Imported
from ..simulators.progress import progress_of
from .engine import Step, plan
from .folder import STORE, RunFolder
from .job import Job
from .report import posterior_rows
from .rounds import simulations_of
from .slurm.checks import problems_of
from .slurm.ledger import Ledger
from .slurm.scheduler import Scheduler
from .slurm.settings import ArrayJob
from .slurm.status import RunStatus, TaskStatus, status_of
from .stages import STAGES
from .yaml_file import RECIPES, recipes

console = Console()
_MOST_TASKS = 40  # of jobs that are all shown


def show_outcome(folder: RunFolder) -> None:
    """The posterior table, the verdict of every check, and where the report is."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary["posterior"]:
        _table("Posterior", ("parameter", "mean", "sd", "median", "90 % interval"), posterior_rows(summary))
    verdicts = [
        (name, f"[{'green' if c['verdict'] == 'pass' else 'red'}]{c['verdict']}[/]", c["finding"])
        for name, c in summary["checks"].items()
    ]
    _table("Checks", ("check", "verdict", "finding"), verdicts)
    for check in summary["checks"].values():
        if check["verdict"] == "fail":
            console.print(f"{check['title']}: {check['advice']}", markup=False, highlight=False)
    seconds = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    report = folder.done("report")
    seconds["report"] = report.seconds if report else 0.0
    split = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    console.print(f"Time: {split}", highlight=False)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def show_symmetry(found: SymmetryCheck) -> None:
    """Every question with its answer, what to do about those that failed, and the verdict."""
    colours = {"pass": "green", "fail": "red", "not tested": "yellow"}
    rows = [(f.name, f"[{colours[f.verdict]}]{f.verdict}[/]", escape(f.finding)) for f in found.findings]
    _table(f"Symmetry of {found.simulator}", ("question", "verdict", "finding"), rows)
    for f in found.findings:
        if f.verdict == "fail":
            console.print(f"{f.name}: {f.advice}", markup=False, highlight=False)
    console.print(found.verdict, markup=False, highlight=False)


def failed_checks(folder: RunFolder) -> list[str]:
    """Names of checks that failed, from the markers of the stages that ran them."""
    markers = [folder.done(name) for name in ("diagnose", "infer")]
    found = {name: c for marker in markers if marker for name, c in marker.numbers.get("checks", {}).items()}
    return [name for name, check in found.items() if check["verdict"] == "fail"]


def show_plan(job: Job, folder: RunFolder) -> None:
    """Stages with what would happen to each, rows, bytes and a guess of the time."""
    sizes, seconds = _sizes(job), _guesses(job)
    rows = []
    for step in plan(job, folder, list(STAGES)):
        name = step.stage.name
        busy = step.action not in ("skip", "restore")
        rows.append((name, step.action, _why(step), sizes.get(name, ""), seconds.get(name, "") if busy else ""))
    _table(f"Plan for {folder.path}", ("stage", "action", "why", "size", "time, about"), rows)
    _warn_of_a_full_disk(job, folder.path.absolute())


def _warn_of_a_full_disk(job: Job, path: Path) -> None:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    needed, free = job.config.simulate.rows * job.config.train.rounds * _row_bytes(job), shutil.disk_usage(there).free
    if needed > free:
        console.print(
            f"{_bytes(free)} are free at {there}, fewer than the simulations have before compression: keep runs on another disk "
            "(`--workdir`)",
            style="yellow",
            highlight=False,
        )


def show_jobs_to_be(job: Job, folder: RunFolder) -> None:
    """What `submit` would ask of Slurm, and what it would object to."""
    slurm, scheduler = job.config.local.slurm, Scheduler()
    columns = ("stage", "partition", "nodes", "gpus", "cpus", "memory", "time", "tasks")
    rows = []
    for stage in STAGES:
        asked = slurm.of(stage)
        tasks = (
            isinstance(asked, ArrayJob)
            and f"{asked.array or 'one for each shard'}, {asked.parallel or 'all'} at a time"
        )
        values = (asked.partition, asked.nodes, asked.gpus, asked.cpus, asked.memory, asked.time, tasks)
        rows.append((stage, *("" if value in (None, False) else value for value in values)))
    _table("Jobs of `simfer submit`; where nothing stands, the cluster decides", columns, rows)
    for problem in problems_of(job, folder.path, scheduler):
        console.print(problem, style="yellow", markup=False, highlight=False)


def show_status(path: Path) -> None:
    """Stages that are done, begun or not begun, and how full the store is; of a store alone, only that.

    Raises:
        MissingFileError: No run folder and no store.
    """
    if (path / "zarr.json").is_file():
        show_campaign(SimulationStore.open(path))
        return
    folder = RunFolder(path)
    if not (folder / "config.yaml").is_file():
        raise MissingFileError(f"no run at {path}: a run folder has `config.yaml`")
    if Ledger.there(path):
        show_jobs(path, status_of(path))
        return
    rows = []
    for name in STAGES:
        done, started = folder.done(name), folder.started(name)
        state = "done" if done else "begun" if started else "not begun"
        rows.append((name, state, f"{done.seconds:.1f} s" if done else ""))
    _table(f"Run {path}", ("stage", "state", "time"), rows)
    if (folder / STORE).exists():
        show_campaign(SimulationStore.open(simulations_of(folder.path)))


def watch_status(
    path: Path, seconds: float, scheduler: Scheduler | None = None, pause: Callable[[float], None] = time.sleep
) -> None:
    """Show the jobs of a run again and again, asking the scheduler once each time, until they have ended.

    Raises:
        RunFolderError: Nothing was submitted from there.
    """
    scheduler = scheduler or Scheduler()
    with suppress(KeyboardInterrupt):
        while True:
            found = status_of(path, scheduler)
            if console.is_terminal:
                console.clear()
            show_jobs(path, found)
            if found.over:
                return
            pause(seconds)


def show_jobs(path: Path, found: RunStatus) -> None:
    """Stages and jobs of a run on a cluster; of an array that is large, tasks that are done or wait are only counted."""
    folder = RunFolder(path)
    markers = {name: folder.done(name) for name in STAGES}
    stages = [
        (name, state, f"{m.seconds:.1f} s" if (m := markers[name]) else "") for name, state in found.stages.items()
    ]
    _table(f"Run {path}", ("stage", "state", "time"), stages)
    shown = [task for task in found.tasks if len(found.tasks) <= _MOST_TASKS or task.state in ("running", "failed")]
    counts = {
        state: sum(task.state == state for task in found.tasks) for state in ("done", "running", "pending", "failed")
    }
    columns = ("job", "stage", "state", "node", "rows", "rows/s", "left", "what")
    if found.tasks:
        title = "Jobs: " + ", ".join(f"{n:,} {state}" for state, n in counts.items() if n)
        _table(title, columns, [_job_row(task) for task in shown])
    for task in found.tasks:
        if task.state == "failed" and task.log:
            console.print(f"{task.name}: see {path / task.log}", highlight=False, soft_wrap=True)
    for node, skew in found.clocks.items():
        console.print(f"the clock of {node} differs by {skew:.0f} s from that of the file system", highlight=False)
    if "failed" in counts and counts["failed"] and found.over:
        console.print(f"`simfer resume {path}` submits what is missing", highlight=False, soft_wrap=True)
    if (folder / STORE).exists():
        show_campaign(SimulationStore.open(simulations_of(path)))


def _job_row(task: TaskStatus) -> tuple[Any, ...]:
    colour = {"done": "green", "failed": "red", "running": "cyan"}.get(task.state, "default")
    rows = f"{task.done:,}/{task.rows:,}" if task.rows else ""
    left = "" if task.seconds_left is None else _duration(task.seconds_left)
    rate = f"{task.rate:,.3g}" if task.rate else ""
    return task.name, task.stage, f"[{colour}]{task.state}[/]", task.node, rows, rate, left, escape(task.why)


def show_campaign(store: SimulationStore) -> None:
    """Rows by status, rate, size, time left, and why rows are not ok."""
    found = progress_of(store)
    rows = [(name, f"{n:,}", f"{n / store.rows:.1%}") for name, n in found.counts.items() if n]
    _table(f"Simulations {store.path}", ("status", "rows", "of all"), rows)
    rate = f", {found.rate:,.3g} rows/s" if found.rate else ""
    left = f", about {_duration(found.seconds_left)} left" if found.seconds_left is not None else ""
    console.print(f"{_bytes(found.bytes)} on disk, {found.row_seconds:.3g} s a row{rate}{left}", highlight=False)
    if found.reasons:
        reasons = [(f"{n:,}", row, reason) for reason, (n, row) in found.reasons.items()]
        _table("Why", ("rows", "such as", "reason"), reasons)


def show_list(what: str) -> None:
    """Names of one kind, one a line, each with its first line of documentation.

    Raises:
        UnknownNameError: No such kind.
    """
    kinds = (*registry.GROUPS, "recipes")
    if what not in kinds:
        raise UnknownNameError(f"unknown kind `{what}`; {did_you_mean(what, kinds)}")
    if what == "recipes":
        _table("", ("recipe", "what"), [(name, _recipe_text(name).splitlines()[0].lstrip("# ")) for name in recipes()])
        return
    _table("", (what[:-1], "what"), [(name, _first_line(what, name)) for name in registry.names(what)])


def show_one(name: str) -> None:
    """Everything a user needs to know of one name.

    Raises:
        UnknownNameError: Nothing has that name.
    """
    homes = [group for group in registry.GROUPS if name in registry.names(group)]
    found = False
    for group in homes:
        found = True
        thing = registry.resolve(group, name)
        console.print(f"{group[:-1]} {name}", style="bold", highlight=False)
        module = inspect.getmodule(thing)
        console.print(inspect.cleandoc((module and module.__doc__) or ""), markup=False, highlight=False)
        if group == "simulators":
            _show_simulator(Reference(name).load())
    if name in recipes():
        found = True
        console.print(f"recipe {name}", style="bold", highlight=False)
        console.print(_recipe_text(name), markup=False, highlight=False)
    if not found:
        known = [other for group in registry.GROUPS for other in registry.names(group)] + recipes()
        raise UnknownNameError(f"nothing is called `{name}`; {did_you_mean(name, known)}")


def _show_simulator(simulator: Simulator) -> None:
    prior = simulator.prior.to_json()
    parameters = [(name, item["dist"], arguments_text(item), item["units"]) for name, item in prior.items()]
    _table("Parameters", ("name", "prior", "arguments", "units"), parameters)
    observables = [(v.name, str(v.shape), v.dtype, v.units) for v in simulator.observables]
    _table("Observables", ("name", "shape", "dtype", "units"), observables)
    shipped = ", ".join(getattr(simulator, "observations", {})) or "none"
    console.print(f"Observations shipped: {shipped}", highlight=False)
    if isinstance(simulator, HasSymmetry):
        console.print(f"Symmetry declared: {simulator.symmetry}", markup=False, highlight=False)


def _why(step: Step) -> str:
    texts = {"skip": "up to date", "run": "not begun", "resume": "interrupted", "restore": "was set aside"}
    return texts.get(step.action) or "; ".join(step.changes)


def _sizes(job: Job) -> dict[str, str]:
    config = job.config
    draws, rounds = config.pairs * config.diagnose.draws, config.train.rounds
    epochs = budget(config.train, config.rows_train).epochs
    more = f"; {rounds - 1} rounds more, {config.simulate.rows * rounds:,} rows in all" if rounds > 1 else ""
    return {
        "simulate": f"{config.simulate.rows:,} rows, {_bytes(config.simulate.rows * _row_bytes(job))} before compression",
        "train": f"{config.simulate.rows - config.pairs:,} rows, at most {epochs} epochs{more}",
        "diagnose": f"{draws:,} draws, {_bytes(draws * 8 * (job.prior.dim + 1))}",
        "infer": f"{config.infer.draws:,} draws",
    }


def _row_bytes(job: Job) -> int:
    return 8 * job.prior.dim + sum(v.size * np.dtype(v.dtype).itemsize for v in job.simulator.observables)


def _guesses(job: Job) -> dict[str, str]:
    """Seconds of the long stages, from a few rows and a few steps."""
    config = job.config
    if isinstance(job.simulator, Imported):
        some = job.simulator.peek(100)
        return {"train": "at most " + _duration(_training_guess(job, some.theta, some.x | some.context))}
    try:
        _timed(job, 1)  # one that hangs is given the time of one row, and what is done but once is not counted
        row, draw, x = _timed(job, 3 if getattr(job.simulator, "per_row", False) else 100)
    except Exception as error:  # the simulator's own; `run` will tell it in full
        return {"simulate": f"unknown: {textwrap.shorten(str(error), 200) or type(error).__name__}"}
    array = config.local.slurm.simulate
    at_once = {"inline": 1, "slurm": array.parallel or array.array or 1}
    workers = at_once.get(config.local.executor, config.local.workers)
    training, simulating = _training_guess(job, draw.theta, x | draw.context), row * config.simulate.rows / workers
    training += (config.train.rounds - 1) * (simulating + (1 + config.train.rounds) / 2 * training)  # rows add up
    return {"simulate": _duration(simulating), "train": "at most " + _duration(training)}


def _timed(job: Job, rows: int) -> tuple[float, Draw, Arrays]:
    """Seconds that a row takes, and the rows; protected as those of the campaign.

    Raises:
        SimulatorError: There is no x.
    """
    simulate = BlockSimulator(job.simulator, job.prior, 0, job.protection, job.context)
    started = time.perf_counter()
    block = Block((0,), slice(0, min(rows, job.config.simulate.rows)))
    draw, rng = simulate.draw(block)
    outcome = simulate.together(block, draw, rng)
    if outcome.result is None:
        raise SimulatorError(outcome.reason)
    return (time.perf_counter() - started) / len(draw.theta), draw, outcome.result


def _training_guess(job: Job, theta: np.ndarray, x: dict[str, np.ndarray]) -> float:
    import torch

    from ..data.loaders import as_batch
    from ..estimators.model import build_estimator

    config = job.config
    train, rows = config.train, config.rows_train
    numbers = budget(train, rows)
    estimator = build_estimator(job.prior, job.conditions, train.estimator(impute=True))
    some = as_batch(theta, x)
    estimator.fit_preprocess([some])
    batch = some.select(torch.arange(numbers.batch_size) % some.rows)
    for repeat in range(4):
        if repeat == 1:
            started = time.perf_counter()
        estimator.loss(batch).mean().backward()
    return (time.perf_counter() - started) / 3 * rows / numbers.batch_size * numbers.epochs


def _bytes(size: int) -> str:
    count = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _first_line(group: str, name: str) -> str:
    try:
        module = inspect.getmodule(registry.resolve(group, name))
    except (ImportError, SimferError) as error:  # a broken plugin hurts only whoever asks for it
        return f"cannot be imported: {error}"
    return ((module and module.__doc__) or "").strip().splitlines()[0] if module and module.__doc__ else ""


def _recipe_text(name: str) -> str:
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)

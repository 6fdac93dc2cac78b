"""Run stages: skip what is up to date, go on with what was interrupted, rebuild what changed and say why."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from ..data.files import write_json, write_text
from ..data.store import SimulationStore
from ..simulators.begin import begin, note_attempts
from ..simulators.block import attempts_of
from .folder import STORE, Marker, RunFolder, differences, key_of
from .job import Job
from .progress import Reporter
from .stages import STAGES, Stage
from .yaml_file import dump

Action = Literal["skip", "run", "resume", "extend", "rebuild", "restore"]


@dataclass(frozen=True, slots=True)
class Step:
    """What would happen to one stage.

    Attributes:
        stage: Which.
        action: ``skip`` up to date; ``run`` never ran; ``resume`` interrupted; ``rebuild`` its inputs changed;
            ``extend`` what is there is a part of what is wanted; ``restore`` these inputs were set aside before.
        changes: What changed, for ``rebuild``.
        key: Its fingerprint.
        inputs: What it is made from.
    """

    stage: Stage
    action: Action
    changes: tuple[str, ...]
    key: str
    inputs: dict[str, Any]


def with_needs(names: Sequence[str]) -> list[str]:
    """These stages and all they need, in order."""
    wanted: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo.extend(STAGES[name].needs)
    return [name for name in STAGES if name in wanted]


def plan(job: Job, folder: RunFolder, names: Sequence[str]) -> list[Step]:
    """What running ``names`` would do; changes nothing."""
    keys: dict[str, str] = {}
    steps: list[Step] = []
    for name in with_needs(names):
        stage = STAGES[name]
        inputs = stage.inputs(job)
        keys[name] = key_of(inputs, [keys[need] for need in stage.needs])
        redone = [step.stage.name for step in steps if step.stage.name in stage.needs and step.action != "skip"]
        steps.append(_step(stage, folder, keys[name], inputs, redone))
    return steps


def execute(job: Job, folder: RunFolder, names: Sequence[str], reporter: Reporter, wait: float = 0.0) -> None:
    """Run ``names`` and all they need, after waiting ``wait`` seconds at most for another process to leave the folder.

    Raises:
        SimferError: Whatever a stage raises; what was computed before stays.
    """
    with folder.in_use(wait):
        steps = plan(job, folder, names)
        record(job, folder, steps)
        for step in steps:
            _announce(step, reporter)
            if step.action != "skip":
                _run(step, job, folder, reporter)


def record(job: Job, folder: RunFolder, steps: list[Step]) -> None:
    """Write what is about to be run, and on what."""
    write_text(folder / "config.yaml", dump(job.config, folder / "config.yaml"))
    write_json(folder / "provenance.json", _provenance(job, steps))


def begin_simulations(job: Job, folder: RunFolder, step: Step, reporter: Reporter) -> SimulationStore:
    """The store of a run whose rows are simulated elsewhere; its stage is begun. The folder must be held.

    Raises:
        StoreError: The store that is there belongs to another campaign.
        SimulatorError: The simulator breaks its contract.
    """
    _make_room(step, folder, reporter)
    done = folder.done(step.stage.name)
    if not (done and done.fingerprint == step.key):
        folder.begin(step.stage.name, step.key, step.inputs)
    config = job.config
    store = begin(
        job.simulator,
        config.simulate.rows,
        folder / STORE,
        seed=config.seed,
        prior=job.prior,
        context=job.context,
        protection=job.protection,
        block=config.simulate.block,
        shards=config.simulate.shards,
    )
    note_attempts(store, attempts_of(job.simulator, job.protection))
    return store


def _step(stage: Stage, folder: RunFolder, key: str, inputs: dict[str, Any], redone: list[str]) -> Step:
    done, started = folder.done(stage.name), folder.started(stage.name)
    if done and done.fingerprint == key and all((folder / name).exists() for name in _made(stage, done)):
        return Step(stage, "skip", (), key, inputs)
    if started and started.fingerprint == key:
        return Step(stage, "resume", (), key, inputs)
    if stage.precious and folder.has_aside(stage.name, key):
        return Step(stage, "restore", (), key, inputs)
    known = done or started
    if known is None:
        return Step(stage, "run", (), key, inputs)
    if stage.grows(known.inputs, inputs) and (folder / stage.outputs[0]).exists():
        return Step(stage, "extend", tuple(differences(known.inputs, inputs)), key, inputs)
    changes = differences(known.inputs, inputs) or [f"{' and '.join(redone) or 'its output'} changed"]
    return Step(stage, "rebuild", tuple(changes), key, inputs)


def _made(stage: Stage, done: Marker) -> tuple[str, ...]:
    """The outputs that must be there: a stage with nothing to do, such as inference without an observation, has none."""
    return stage.outputs if done.numbers or stage.name == "report" else ()


def _announce(step: Step, reporter: Reporter) -> None:
    name = step.stage.name
    words = {
        "skip": f"{name}: up to date",
        "run": f"{name}: running",
        "resume": f"{name}: continuing where it was interrupted",
        "restore": f"{name}: these inputs were set aside before; taking their result back",
        "extend": f"{name}: more is wanted than is there ({'; '.join(step.changes)})",
        "rebuild": f"{name}: changed, running again ({'; '.join(step.changes[:5])})",
    }
    reporter.say(words[step.action], style="dim" if step.action == "skip" else "bold")


def _run(step: Step, job: Job, folder: RunFolder, reporter: Reporter) -> None:
    stage = step.stage
    _make_room(step, folder, reporter)
    done = folder.done(stage.name)
    if done and done.fingerprint == step.key:  # brought back complete
        return
    folder.begin(stage.name, step.key, step.inputs)
    started = time.monotonic()
    with _logged(folder, stage.name, reporter):
        numbers = stage.run(job, folder, reporter)
        seconds = time.monotonic() - started
        logging.getLogger("simfer.run").info("%s done in %.1f s", stage.name, seconds)
    folder.finish(stage.name, step.key, step.inputs, numbers, seconds)


def _make_room(step: Step, folder: RunFolder, reporter: Reporter) -> None:
    """Put outdated outputs out of the way, and bring back those that fit, if there are any."""
    stage = step.stage
    if step.action in ("resume", "extend"):
        return
    known = folder.done(stage.name) or folder.started(stage.name)
    if known and stage.precious and known.fingerprint != step.key:
        aside = folder.set_aside(stage.name, stage.everything, known.fingerprint)
        reporter.say(f"{stage.name}: the former result was set aside in {aside}; delete it if you need the space")
    elif step.action != "restore":
        folder.clear(stage.name, stage.everything)
    if stage.precious:
        folder.bring_back(stage.name, stage.everything, step.key)


class _Warnings(logging.Handler):
    """Tells the user what is logged as a warning."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.show(record.getMessage(), style="yellow")


@contextmanager
def _logged(folder: RunFolder, stage: str, reporter: Reporter) -> Iterator[None]:
    """Everything simfer logs meanwhile goes to ``logs/STAGE.log`` too, and warnings to the user."""
    (folder / "logs").mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / "logs" / f"{stage}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger, warnings = logging.getLogger("simfer"), _Warnings(reporter)
    level = logger.level
    logger.addHandler(handler)
    logger.addHandler(warnings)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.removeHandler(warnings)
        logger.setLevel(level)
        handler.close()


def _provenance(job: Job, steps: list[Step]) -> dict[str, Any]:
    made_from = STAGES["simulate"].inputs(job)
    packages = ("simfer", "torch", "lightning", "zuko", "zarr", "xarray", "numpy", "scipy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "accelerator": _accelerator()},
        "seed": job.config.seed,
        "simulator": made_from["simulator"],
        "imported": made_from.get("source"),
        "fingerprints": {step.stage.name: step.key for step in steps},
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def workdir_of(job: Job, workdir: str | Path | None) -> RunFolder:
    """The run folder: as given, or ``runs/NAME``."""
    return RunFolder(Path(workdir) if workdir is not None else Path("runs") / job.config.name)

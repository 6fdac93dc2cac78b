"""Truncated rounds of a run: what the train stage does with ``train.rounds`` above 1.

The run's own store stays as the simulate stage left it, and so does what depends on it; ``rounds/simulations.zarr`` begins
as the same campaign, sharing its files, and is extended round by round. ``rounds/`` goes with the model: set aside with it
when the configuration changes, and brought back with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.splits import held_out
from ..data.store import SimulationStore
from ..simulators.block import group_size_of
from .filling import fill
from .folder import ROUNDS, STORE, RunFolder
from .job import Job
from .progress import Reporter

if TYPE_CHECKING:
    from ..estimators.model import Model
    from ..estimators.sequential import Sequential


def run_rounds(job: Job, folder: RunFolder, reporter: Reporter) -> Sequential:
    """All rounds, from whatever is there of them.

    Raises:
        SimferError: Whatever simulating or training raises; what was computed before stays.
    """
    from ..estimators.sequential import SIMULATIONS, Rounds, copy_store

    assert job.observation is not None  # make_job has seen to it
    config, where = job.config, folder / ROUNDS
    if not (where / SIMULATIONS).exists():
        copy_store(folder / STORE, where / SIMULATIONS)
    rounds = Rounds(
        where,
        job.observation,
        config.train.sequential(),
        job.prior,
        config.simulate.rows,
        group_size_of(job.simulator),
        config.seed,
        lambda path: _fill(job, path, reporter),
        lambda store, number, own: _fit(job, folder, store, number, own, reporter),
        reporter.say,
        job.modules,
    )
    return rounds.run()


def simulations_of(run: Path) -> Path:
    """The store that a run's model was trained on."""
    rounds = run / ROUNDS / STORE
    return rounds if rounds.exists() else run / STORE


def _fill(job: Job, path: Path, reporter: Reporter) -> SimulationStore:
    store = SimulationStore.open(path)
    pending = sum(map(store.layout.shard_length, store.pending_shards()))
    if not pending:
        return store
    with reporter.bar("simulate", pending, "rows") as meter:
        return fill(job, path, store.rows, progress=meter)


def _fit(job: Job, folder: RunFolder, store: SimulationStore, number: int, own: Path, reporter: Reporter) -> Model:
    from ..estimators.schedule import budget
    from ..estimators.sequential import fit_round

    config, last = job.config, number == job.config.train.rounds
    epochs = budget(config.train, round(store.rows * (1 - config.train.validation))).epochs
    epochs *= config.train.training().trainings
    with reporter.bar(f"round {number}", epochs, "epochs") as meter:
        return fit_round(
            store,
            number,
            folder.path if last else own,
            job.prior,
            config.train.estimator(impute=config.simulate.on_invalid == "impute"),
            config.train.training(),
            rows=~held_out(store, config.pairs) if last else slice(None),
            seed=config.seed,
            hardware=config.local.hardware(),
            on_epoch=meter.epoch,
        )


def numbers_of(found: Sequential) -> dict[str, Any]:
    """For ``summary.json``."""
    assert found.store is not None
    return {
        "simulations": found.store.rows,
        "leaked_mass": found.rounds[-1]["leaked_mass"],
        "rounds": found.rounds,
    }

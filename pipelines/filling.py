"""Fill a run's store as its configuration says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..data.store import SimulationStore
from ..simulators.campaign import simulate
from .executors import make_executor
from .job import Job


def fill(
    job: Job,
    path: Path,
    rows: int,
    *,
    block: int | None = None,
    shards: int | None = None,
    there: Callable[[int], None] = lambda rows: None,
    progress: Callable[[int], None],
) -> SimulationStore:
    """Simulate what is missing.

    Args:
        job: What to simulate, and how.
        path: Of the store.
        rows: In all.
        block: Rows simulated by one call, for a new store.
        shards: Parts of a new store that can be written at the same time.
        there: Told of how many rows were there before.
        progress: Told of rows as they come.
    """
    config = job.config
    return simulate(
        job.simulator,
        rows,
        path,
        seed=config.seed,
        prior=job.prior,
        context=job.context,
        executor=make_executor(config.local, path.parent),
        on_invalid=config.simulate.on_invalid,
        protection=job.protection,
        block=block,
        shards=shards,
        reference=job.reference,
        progress=_first_is_skipped(there, progress),
    )


def _first_is_skipped(skip: Callable[[int], None], advance: Callable[[int], None]) -> Callable[[int], None]:
    """A campaign first reports what was there before it began."""
    first = True

    def report(rows: int) -> None:
        nonlocal first
        (skip if first else advance)(rows)
        first = False

    return report

"""Upkeep of a campaign from the command line: verify, repair, retry."""

from __future__ import annotations

from pathlib import Path

from ..data.records import FAILED, TIMEOUT
from ..data.store import SimulationStore
from ..simulators.campaign import retry, verify
from .executors import make_executor
from .folder import RunFolder
from .job import Job
from .progress import Reporter
from .stages import STAGES

STORE = "simulations.zarr"


def store_of(path: Path) -> SimulationStore:
    """The store at ``path``, or of the run there."""
    return SimulationStore.open(path / STORE if (path / "config.yaml").is_file() else path)


def verify_or_repair(path: Path, *, repair: bool, reporter: Reporter) -> None:
    """Verify a store, or that of a run; with ``repair`` give damaged shards up, to be simulated anew.

    Raises:
        CorruptStoreError: Something is damaged, and is not to be or cannot be repaired.
    """
    store = store_of(path)
    damaged = sorted({damage.shard for damage in store.damages()}) if repair else []
    for shard in damaged:
        store.discard(shard)
        reporter.say(f"shard {shard} was damaged and is pending again")
    if damaged and store.path != path:
        _reopen(RunFolder(path))
        reporter.say(f"run `simfer run {path / 'config.yaml'} --workdir {path}` to simulate it anew")
    verify(store)
    counts = ", ".join(f"{n:,} {name}" for name, n in store.counts().items() if n)
    reporter.say(f"{store.path}: every byte that is marked done is whole ({counts})")


def retry_failed(job: Job, folder: RunFolder, reporter: Reporter) -> None:
    """Try failed and timed-out rows of a run once more; what was made of the store before is set aside.

    Raises:
        CorruptStoreError: The store is damaged.
    """
    config = job.config
    with folder.in_use():
        store = SimulationStore.open(folder / STORE)
        before = store.counts()
        shards = store.shards_with((FAILED, TIMEOUT))
        with reporter.bar("retry", sum(map(store.layout.shard_length, shards)), "rows") as meter:
            retry(
                job.simulator,
                store.path,
                context=job.context,
                executor=make_executor(config.local),
                protection=job.protection,
                reference=job.reference,
                progress=meter,
            )
        after = store.counts()
        reporter.say(f"retry: {after['ok'] - before['ok']:,} of {before['failed'] + before['timeout']:,} rows mended")
        if after != before:
            _outdate(folder, int(SimulationStore.open(store.path).attributes["attempts"]), reporter)


def _reopen(folder: RunFolder) -> None:
    """Let the simulate stage go on."""
    done = folder.done("simulate")
    if done:
        folder.clear("simulate", ())
        folder.begin("simulate", done.fingerprint, done.inputs)


def _outdate(folder: RunFolder, attempts: int, reporter: Reporter) -> None:
    """Set aside what was made from the store as it was."""
    for name, stage in STAGES.items():
        if name != "simulate" and (folder.done(name) or folder.started(name)):
            aside = folder.set_aside(name, stage.outputs, f"retry{attempts}")
            reporter.say(f"{name}: was made without the mended rows; set aside in {aside}")
    _reopen(folder)  # its numbers are counted anew

"""Upkeep of a campaign from the command line: verify, repair, retry."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from ..data.errors import StoreError
from ..data.records import FAILED, TIMEOUT
from ..data.store import SimulationStore
from ..simulators.campaign import retry, verify
from ..simulators.trail import filling
from .executors import make_executor
from .folder import ROUNDS, STORE, RunFolder, key_of
from .job import Job
from .progress import Reporter
from .rounds import simulations_of
from .stages import STAGES


def store_of(path: Path) -> SimulationStore:
    """The store at ``path``, or of the run there, all rounds included."""
    return SimulationStore.open(simulations_of(path) if (path / "config.yaml").is_file() else path)


def verify_or_repair(path: Path, *, repair: bool, reporter: Reporter) -> None:
    """Verify a store, or that of a run; with ``repair`` give damaged shards up, to be simulated anew.

    Raises:
        CorruptStoreError: Something is damaged, and is not to be repaired.
        StoreError: It cannot be repaired: it was merged or imported, or is being filled.
    """
    stores = [store_of(path)]
    if stores[0].path.parent.name == ROUNDS and stores[0].path != path:  # its first rows are those of the run's own
        stores.insert(0, SimulationStore.open(path / STORE))
    for store in stores:
        _verify_or_repair(store, RunFolder(path) if store.path != path else None, repair=repair, reporter=reporter)


def _verify_or_repair(store: SimulationStore, run: RunFolder | None, *, repair: bool, reporter: Reporter) -> None:
    damaged = sorted({damage.shard for damage in store.damages()}) if repair else []
    if damaged:
        _repair(store, damaged, run, reporter)
    verify(store)
    counts = ", ".join(f"{n:,} {name}" for name, n in store.counts().items() if n)
    reporter.say(f"{store.path}: every byte that is marked done is whole ({counts})")


def retry_failed(job: Job, folder: RunFolder, reporter: Reporter) -> None:
    """Try failed and timed-out rows of a run once more; what was made of the store before is set aside.

    Raises:
        StoreError: The store belongs to another configuration.
        CorruptStoreError: It is damaged.
        MissingFileError: There is no store.
    """
    store = SimulationStore.open(folder / STORE)
    with folder.in_use():
        before = store.counts()
        failed = before["failed"] + before["timeout"]
        if not failed:
            reporter.say("retry: no row failed")
            return
        _outdate(
            job, folder, int(store.attributes.get("attempts", 1)), reporter
        )  # first: a kill must not leave it current
        shards = store.shards_with((FAILED, TIMEOUT))
        with reporter.bar("retry", sum(map(store.layout.shard_length, shards)), "rows") as meter:
            retry(
                job.simulator,
                store.path,
                prior=job.prior,
                context=job.context,
                executor=make_executor(job.config.local, store.path.parent),
                protection=job.protection,
                reference=job.reference,
                progress=meter,
            )
        reporter.say(f"retry: {store.counts()['ok'] - before['ok']:,} of {failed:,} rows mended")


def _repair(store: SimulationStore, damaged: list[int], run: RunFolder | None, reporter: Reporter) -> None:
    own = isinstance(store.attributes["campaign"].get("seed"), int)
    if not own and run is None:
        listed = ", ".join(map(str, damaged))
        raise StoreError(
            f"shards {listed} of {store.path} are damaged and cannot be simulated anew, because it was merged or imported: "
            "remove it and make it again from what it was made of"
        )
    with run.in_use() if run else nullcontext(), filling(store, alone=True):
        stage = "train" if store.path.parent.name == ROUNDS else "simulate"  # the one that fills it
        if run and (done := run.done(stage)):
            run.begin(stage, done.fingerprint, done.inputs)
        for shard in damaged:
            store.discard(shard)
            reporter.say(f"shard {shard} was damaged and is pending again")
    if run:
        reporter.say(f"run `simfer run {run / 'config.yaml'} --workdir {run.path}` to simulate it anew")


def _outdate(job: Job, folder: RunFolder, attempt: int, reporter: Reporter) -> None:
    """Set aside what was made from the store as it was, and what was set aside before but would come back."""
    inputs = STAGES["simulate"].inputs(job)
    folder.begin("simulate", key_of(inputs, []), inputs)  # to be counted anew
    for name, stage in STAGES.items():
        if name != "simulate":
            if folder.done(name):
                reporter.say(f"{name}: was made without the rows to be mended; set aside in {folder / 'superseded'}")
            folder.retire(name, stage.everything, f"before-retry{attempt}")

"""Campaigns: fill a store with simulations on any executor, stop anywhere, go on, and end with the same bytes.

Randomness belongs to the block, not to the worker: block b uses the generator of
``SeedSequence(seed, spawn_key=(b,))`` for its theta and then for its one call of ``simulate``. A block whose call
raises is run again row by row, row r with ``spawn_key=(b, r, attempt)``, so that one bad row costs one row.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..data import registry
from ..data.errors import ContractError, SimulatorError, StoreError
from ..data.files import fingerprint
from ..data.store import FAILED, INVALID, OK, STATUS, Layout, SimulationStore
from ..data.variables import Arrays
from .base import Simulator, describe, simulate_checked
from .prior import Prior

logger = logging.getLogger(__name__)

OnInvalid = Literal["mask", "fail", "impute"]


@runtime_checkable
class Executor(Protocol):
    """What a campaign needs of whoever runs it: results in any order, as they come."""

    def map(self, task: Callable[[int], ShardReport], items: Iterable[int]) -> Iterator[ShardReport]: ...


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of one shard: rows by status, and the first thing that went wrong, with its row."""

    shard: int
    counts: dict[str, int]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """A simulator by name and arguments (as JSON), for workers that cannot be sent the object itself."""

    name: str
    arguments: str = "{}"
    folder: Path | None = None

    def load(self) -> Simulator:
        """Find the simulator and make it.

        Raises:
            UnknownNameError: No such simulator.
            SimulatorError: It cannot be made from these arguments, or is none.
        """
        found = registry.resolve("simulators", self.name, self.folder)
        arguments = json.loads(self.arguments)
        try:
            made = found(**arguments) if callable(found) else found
        except Exception as error:
            raise SimulatorError(f"`{self.name}` cannot be made from {arguments or 'no arguments'}: {error}") from error
        if not isinstance(made, Simulator):
            raise SimulatorError(
                f"`{self.name}` must have `prior`, `observables` and `simulate`; got {type(made).__name__}"
            )
        return made


@dataclass(frozen=True, slots=True)
class FillShard:
    """The task of one worker: simulate one shard and write it."""

    store: Path
    simulator: Simulator | Reference
    prior: Prior
    seed: int

    def __call__(self, shard: int) -> ShardReport:
        simulator = _loaded(self.simulator) if isinstance(self.simulator, Reference) else self.simulator
        store = SimulationStore.open(self.store)
        blocks = [
            _simulate_block(simulator, self.prior, self.seed, block, rows) for block, rows in store.layout.blocks(shard)
        ]
        theta, status, runtime = (
            np.concatenate([getattr(b, key) for b in blocks]) for key in ("theta", "status", "runtime")
        )
        x = {name: np.concatenate([block.x[name] for block in blocks]) for name in store.observables.names}
        store.write_shard(shard, theta, x, status, runtime)
        found = np.bincount(status, minlength=len(STATUS))
        counts = {name: int(n) for name, n in zip(STATUS, found, strict=True)}
        return ShardReport(shard, counts, next((block.problem for block in blocks if block.problem), ""))


def simulate(
    simulator: Simulator,
    rows: int,
    path: str | Path,
    *,
    seed: int = 0,
    prior: Prior | None = None,
    executor: Executor | None = None,
    on_invalid: OnInvalid = "mask",
    reference: Reference | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> SimulationStore:
    """Fill the store at ``path`` with ``rows`` simulations; if it is there already, finish it.

    Args:
        simulator: The forward model.
        rows: How many simulations.
        path: Folder of the Zarr store.
        seed: Root of all randomness.
        prior: Overrides the simulator's own.
        executor: Runs the shards; one after the other in this process when None.
        on_invalid: ``fail`` stops at the first row that raises or is not finite; ``mask`` and ``impute`` record it.
        reference: The simulator by name, for executors whose workers must find it themselves.
        progress: Called with the number of rows just done.

    Returns:
        The complete store.

    Raises:
        StoreError: The store belongs to another campaign; says what differs.
        SimulatorError: The simulator broke its contract, raised for every row, or gave no finite row at all.
    """
    prior = prior or simulator.prior
    store = _open_or_create(simulator, prior, rows, Path(path), seed)
    pending = store.pending_shards()
    progress(store.rows - sum(_shard_length(store, shard) for shard in pending))
    task = FillShard(store.path, reference or simulator, prior, seed)
    for report in (executor or _InThisProcess()).map(task, pending):
        _judge(report, on_invalid)
        progress(_shard_length(store, report.shard))
    _require_some_ok(store)
    return store


def identity(simulator: Simulator, prior: Prior, seed: int) -> dict[str, Any]:
    """What makes two campaigns the same one."""
    return {
        "simulator": describe(simulator),
        "prior": prior.to_json(),
        "observables": simulator.observables.to_json(),
        "seed": seed,
    }


class _InThisProcess:
    def map(self, task: Callable[[int], ShardReport], items: Iterable[int]) -> Iterator[ShardReport]:
        return map(task, items)


def _open_or_create(simulator: Simulator, prior: Prior, rows: int, path: Path, seed: int) -> SimulationStore:
    own = identity(simulator, prior, seed)
    if not path.exists():
        _probe(simulator, prior)
        attributes = {
            "campaign": own,
            "campaign_hash": fingerprint(own),
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
            "versions": {name: version(name) for name in ("simfer", "numpy", "torch", "zarr")},
        }
        layout = Layout.choose(rows, simulator.observables)
        return SimulationStore.create(path, layout, prior.variables, simulator.observables, attributes)
    store = SimulationStore.open(path)
    store.sweep()
    theirs = {**store.attributes.get("campaign", {}), "rows": store.rows}
    differing = [key for key, value in {**own, "rows": rows}.items() if theirs.get(key) != value]
    if differing:
        raise StoreError(
            f"the store {path} belongs to another campaign: it differs in {', '.join(differing)}: "
            "give another path, or remove the store"
        )
    return store


def _probe(simulator: Simulator, prior: Prior) -> None:
    """Hold the simulator to its contract on a few rows before anything is written."""
    rng = np.random.default_rng(0)
    try:
        simulate_checked(simulator, prior.sample(3, rng), rng)
    except ContractError:
        raise
    except Exception as error:
        logger.debug("the probe raised %r; rows will be tried one by one", error)


@dataclass(frozen=True, slots=True)
class _Block:
    theta: np.ndarray
    x: Arrays
    status: np.ndarray
    runtime: np.ndarray
    problem: str


def _simulate_block(simulator: Simulator, prior: Prior, seed: int, block: int, rows: int) -> _Block:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block,)))
    theta = prior.sample(rows, rng)
    started = time.perf_counter()
    try:
        x, failed, problem = simulate_checked(simulator, theta, rng), np.zeros(rows, bool), ""
    except ContractError:
        raise
    except Exception as error:
        logger.debug("block %d raised %r; trying its rows one by one", block, error)
        x, failed, problem = _row_by_row(simulator, theta, seed, block)
    runtime = np.full(rows, (time.perf_counter() - started) / rows, dtype=np.float32)
    finite = np.all([np.isfinite(v).reshape(rows, -1).all(1) for v in x.values()], axis=0)
    status = np.select([failed, ~finite], [FAILED, INVALID], OK).astype(np.int8)
    if not problem and not finite.all():
        problem = f"x is not finite at {_named(prior, theta[~finite][0])}"
    return _Block(theta, x, status, runtime, problem and f"block {block}: {problem}")


def _row_by_row(simulator: Simulator, theta: np.ndarray, seed: int, block: int) -> tuple[Arrays, np.ndarray, str]:
    x = {v.name: _empty((len(theta), *v.shape), v.dtype) for v in simulator.observables}
    failed, problem = np.zeros(len(theta), bool), ""
    for row in range(len(theta)):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block, row, 0)))
        try:
            one = simulate_checked(simulator, theta[row : row + 1], rng)
        except ContractError:
            raise
        except Exception as error:
            failed[row] = True
            problem = problem or f"`simulate` raised {type(error).__name__}: {error} at row {row}, theta = {theta[row]}"
        else:
            for name, values in one.items():
                x[name][row] = values[0]
    if failed.all():
        raise SimulatorError(f"every row of block {block} failed; the first: {problem}")
    return x, failed, problem


def _empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0, dtype)


def _judge(report: ShardReport, on_invalid: OnInvalid) -> None:
    if not report.problem:
        return
    if on_invalid == "fail":
        raise SimulatorError(f"{report.problem} (`on_invalid: fail`; `mask` would leave such rows out)")
    bad = report.counts["invalid"] + report.counts["failed"]
    logger.warning("shard %d: %d rows unusable; the first: %s", report.shard, bad, report.problem)


def _require_some_ok(store: SimulationStore) -> None:
    counts = store.counts()
    if not counts["ok"]:
        raise SimulatorError(
            f"none of the {store.rows} simulations is usable ({counts['invalid']} not finite, {counts['failed']} failed): "
            "check the simulator and the prior's range"
        )


def _shard_length(store: SimulationStore, shard: int) -> int:
    rows = store.layout.shard_rows(shard)
    return rows.stop - rows.start


def _named(prior: Prior, theta: np.ndarray) -> str:
    return ", ".join(f"{name} = {value:.6g}" for name, value in zip(prior.names, theta, strict=True))


@cache
def _loaded(reference: Reference) -> Simulator:
    return reference.load()

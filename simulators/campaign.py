"""Campaigns: fill a store with simulations on any executor, stop anywhere, go on, and end with the same bytes.

Randomness belongs to the block, not to the worker (`block`). A row that cannot be simulated is recorded with its reason
and costs nothing but itself, whether its simulator raises, hangs, crashes or is killed (`guard`, `trail`).
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..data import registry
from ..data.errors import CorruptStoreError, SimulatorError, StoreError, UnsupportedError
from ..data.files import fingerprint
from ..data.layout import Block, Layout
from ..data.proposals import proposed, require_no_proposals, verify_proposals
from ..data.records import FAILED, INVALID, NOTHING, PENDING, STATUS, TIMEOUT, Records, Schema
from ..data.store import SimulationStore
from .base import ContextPrior, HasBaseNumbers, Simulator, context_of, describe
from .block import BlockSimulator, Protection, attempts_of, draw_theta, group_size_of
from .prior import Prior
from .probe import probe
from .trail import Trail, filling, left_over

logger = logging.getLogger(__name__)

OnInvalid = Literal["mask", "fail", "impute"]
_HOPELESS = 100  # rows; none of them simulated: the rest will not be either
_BAD = (INVALID, FAILED, TIMEOUT)


@runtime_checkable
class Executor(Protocol):
    """What a campaign needs of whoever runs it: results in any order, as they come."""

    def map(self, task: Callable[[int], ShardReport], items: Iterable[int]) -> Iterator[ShardReport]: ...


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of one shard: rows by status, and for each status an example of what went wrong."""

    shard: int
    counts: dict[str, int]
    problems: dict[str, str]


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
    """The task of one worker: simulate what one shard lacks and write it.

    Attributes:
        store: Its folder; absolute, because a worker may have another working directory.
        simulator: The forward model, or how to find it.
        prior: Of theta.
        seed: Root of all randomness.
        protection: Against rows that fail.
        context: Of the known nuisance, where there is any.
        again: Statuses of rows to be tried once more, besides filling pending blocks.
        attempt: Number of their next attempt.
    """

    store: Path
    simulator: Simulator | Reference
    prior: Prior
    seed: int
    protection: Protection = field(default_factory=Protection)
    context: ContextPrior | None = None
    again: tuple[int, ...] = ()
    attempt: int = 0

    def __call__(self, shard: int) -> ShardReport:
        simulator = _loaded(self.simulator) if isinstance(self.simulator, Reference) else self.simulator
        store = SimulationStore.open(self.store)
        rows = store.layout.shard_rows(shard)
        begun = store.is_whole(shard) and (store.read_array("status", rows) != PENDING).any()
        before = store.read_records(rows) if begun else None
        with Trail(self.store, shard) as trail:
            parts = [self._block(simulator, store, trail, block, before) for block in store.layout.blocks(shard)]
            records = Records.join(parts, store.schema)
            store.write_shard(shard, records)
            trail.end()
        return _report(shard, records, rows.start, self.prior)

    def _block(
        self, simulator: Simulator, store: SimulationStore, trail: Trail, block: Block, before: Records | None
    ) -> Records:
        start = block.rows.start - block.rows.start // store.layout.shard * store.layout.shard
        known = before and before.select(slice(start, start + block.length), store.schema)
        redo = [] if known is None else np.flatnonzero(np.isin(known.status, self.again)).tolist()
        if known is not None and (known.status != PENDING).all() and not redo:
            return known
        suspect = trail.suspects(block)
        trail.begin(block)
        protection = replace(self.protection, isolate=self.protection.isolate or suspect or trail.fragile)
        theta = proposed(store, block.rows)
        simulate = BlockSimulator(simulator, self.prior, self.seed, protection, self.context, theta)
        records = simulate.again(block, known, redo, self.attempt) if known is not None and redo else simulate(block)
        if suspect and simulate.crashed:
            trail.mark_fragile()
        return records


def simulate(
    simulator: Simulator,
    rows: int,
    path: str | Path,
    *,
    seed: int = 0,
    prior: Prior | None = None,
    context: ContextPrior | None = None,
    executor: Executor | None = None,
    on_invalid: OnInvalid = "mask",
    protection: Protection | None = None,
    block: int | None = None,
    reference: Reference | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> SimulationStore:
    """Fill the store at ``path`` with ``rows`` simulations; if it is there already, finish it, or add what it lacks.

    Args:
        simulator: The forward model.
        rows: How many simulations.
        path: Folder of the Zarr store.
        seed: Root of all randomness.
        prior: Overrides the simulator's own.
        context: Overrides the simulator's own.
        executor: Runs the shards; one after the other in this process when None.
        on_invalid: ``fail`` stops at the first row that raises or is not finite; ``mask`` and ``impute`` record it.
        protection: Time limit, retries, child processes; none when None.
        block: Rows simulated by one call; chosen from the size of a row when None. Fixed when the store is made.
        reference: The simulator by name, for executors whose workers must find it themselves.
        progress: Called with the number of rows just done.

    Returns:
        The complete store.

    Raises:
        StoreError: The store belongs to another campaign, or has more rows; says what differs.
        SimulatorError: The simulator broke its contract, or gave no usable row at all.
    """
    prior = prior or simulator.prior
    protection = protection or Protection()
    context = context or context_of(simulator)
    own = identity(simulator, prior, seed, context)
    _require_whole_groups(simulator, rows)
    if Path(path).exists():
        _grow(own, rows, Path(path))
    else:
        probe(simulator, prior, protection, context)
        _create(simulator, prior, context, own, rows, Path(path), block)
    store = SimulationStore.open(path)
    task = FillShard(store.path.absolute(), reference or simulator, prior, seed, protection, context)
    with filling(store):
        store = _still(store.path, rows)
        _note_attempts(store, attempts_of(simulator, protection))
        if on_invalid == "fail":
            _require_none_bad(store)
        if left_over(store.path):
            logger.warning(
                "the last attempt ended inside a block, which is now simulated in a child process; if the simulator crashed "
                "it, `simulate: {isolate: true}` confines it from the start"
            )
        pending = store.pending_shards()
        progress(store.rows - sum(store.layout.shard_length(shard) for shard in pending))
        _fill(task, store, pending, executor, on_invalid, progress)
        if store.pending_shards():
            raise StoreError(f"shards of {path} went missing while it was filled: run the same command again")
    _require_some_ok(store)
    return store


def retry(
    simulator: Simulator,
    path: str | Path,
    *,
    prior: Prior | None = None,
    context: ContextPrior | None = None,
    executor: Executor | None = None,
    protection: Protection | None = None,
    reference: Reference | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> SimulationStore:
    """Try every row that failed or timed out once more, with random numbers not used before.

    Args:
        simulator: The forward model that filled the store; its source may have been mended meanwhile.
        path: Folder of the Zarr store.
        prior: As the campaign was begun with; the simulator's own when None.
        context: As the campaign was begun with; the simulator's own when None.
        executor: Runs the shards; one after the other in this process when None.
        protection: Time limit, retries, child processes; none when None.
        reference: The simulator by name, for executors whose workers must find it themselves.
        progress: Called with the number of rows of each shard just done.

    Returns:
        The store; `SimulationStore.counts` says what is left.

    Raises:
        StoreError: The store was filled by another simulator, or is being filled.
        UnsupportedError: It was imported or merged.
    """
    store, protection = SimulationStore.open(path), protection or Protection()
    prior, context = prior or simulator.prior, context or context_of(simulator)
    own = identity(simulator, prior, _own_seed(store), context)
    _require_same(_without_source(own), _without_source(store.attributes["campaign"]), store.path)
    with filling(store, alone=True):
        store = SimulationStore.open(path)
        attempt = int(store.attributes.get("attempts", 1))
        mended = {"campaign": own, "campaign_hash": fingerprint(own)}
        store.annotate({**mended, "attempts": attempt + attempts_of(simulator, protection)})
    sent, again = reference or simulator, (FAILED, TIMEOUT)
    task = FillShard(store.path.absolute(), sent, prior, own["seed"], protection, context, again, attempt)
    with filling(store):
        _fill(task, store, store.shards_with(again), executor, "mask", progress)
    return store


def verify(store: SimulationStore, prior: Prior | None = None) -> None:
    """Read every byte, and draw theta of every block anew to see that the seeds are what the attributes say.

    Args:
        store: Any.
        prior: The campaign's, where it holds a class of the user's own that the attributes only name.

    Raises:
        CorruptStoreError: Naming what is damaged.
    """
    store.verify()
    verify_proposals(store)
    campaign = store.attributes["campaign"]
    if fingerprint(campaign) != store.attributes["campaign_hash"]:
        raise CorruptStoreError(f"the attributes of {store.path} were changed: `campaign` does not fit `campaign_hash`")
    if not isinstance(campaign.get("seed"), int):  # imported or merged: drawn elsewhere
        return
    prior, size = prior or Prior.from_json(campaign["prior"]), campaign.get("group_size", 1)
    for shard in range(store.layout.shards):
        for block in store.layout.blocks(shard):
            theta = store.read_array("theta", block.rows)
            rng = np.random.default_rng(np.random.SeedSequence(campaign["seed"], spawn_key=block.key))
            given = proposed(store, block.rows)
            drawn = draw_theta(prior, block.length, size, rng) if given is None else given
            pending = store.read_array("status", block.rows) == PENDING
            if not np.allclose(theta[~pending], drawn[~pending], rtol=1e-9, atol=1e-12):
                raise CorruptStoreError(
                    f"shard {shard} of {store.path}: theta of block {block.key} is not what "
                    + (f"seed {campaign['seed']} draws" if given is None else "was proposed")
                )


def identity(simulator: Simulator, prior: Prior, seed: int, context: ContextPrior | None = None) -> dict[str, Any]:
    """What makes two campaigns the same one."""
    context = context or context_of(simulator)
    optional = {
        "context": context and (context.to_json() if isinstance(context, Prior) else describe(context)),
        "u_shape": list(getattr(simulator, "u_shape", ())),
        "group_size": getattr(simulator, "group_size", None),
    }
    return {
        "simulator": describe(simulator),
        "prior": prior.to_json(),
        "observables": simulator.observables.to_json(),
        "seed": seed,
        **{key: value for key, value in optional.items() if value},
    }


def schema_of(simulator: Simulator, prior: Prior, context: ContextPrior | None = None) -> Schema:
    """Which arrays a campaign of this simulator has."""
    context = context or context_of(simulator)
    return Schema(
        prior.variables,
        simulator.observables,
        context.variables if context else NOTHING,
        tuple(simulator.u_shape) if isinstance(simulator, HasBaseNumbers) else None,
        group_size_of(simulator) > 1,
    )


class _InThisProcess:
    def map(self, task: Callable[[int], ShardReport], items: Iterable[int]) -> Iterator[ShardReport]:
        return map(task, items)


def _fill(
    task: FillShard,
    store: SimulationStore,
    shards: list[int],
    executor: Executor | None,
    on_invalid: OnInvalid,
    progress: Callable[[int], None],
) -> None:
    told: dict[str, str] = {}
    seen = usable = 0
    for report in (executor or _InThisProcess()).map(task, shards):
        _judge(report, on_invalid, told)
        seen, usable = seen + sum(report.counts.values()), usable + report.counts["ok"] + report.counts["invalid"]
        if seen >= _HOPELESS and not usable:
            raise SimulatorError(f"none of the first {seen} simulations succeeded; {_first(told)}")
        progress(store.layout.shard_length(report.shard))


def _create(
    simulator: Simulator,
    prior: Prior,
    context: ContextPrior | None,
    own: dict[str, Any],
    rows: int,
    path: Path,
    block: int | None,
) -> SimulationStore:
    attributes = {
        "campaign": own,
        "campaign_hash": fingerprint(own),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "versions": {name: version(name) for name in ("simfer", "numpy", "torch", "zarr")},
    }
    layout = Layout.choose(rows, simulator.observables, block=block, multiple=group_size_of(simulator))
    return SimulationStore.create(path, layout, schema_of(simulator, prior, context), attributes)


def _grow(own: dict[str, Any], rows: int, path: Path) -> None:
    """See that the store at ``path`` is this campaign's, and give it the rows it lacks."""
    store = SimulationStore.open(path)
    theirs = store.attributes.get("campaign", {})
    if not isinstance(theirs.get("seed"), int):
        how = "merged" if "sources" in theirs else "imported"
        raise StoreError(
            f"the store {path} was {how}, and only a campaign of its own can go on: give another path, and merge the two"
        )
    _require_same(own, theirs, path)
    if rows > store.rows:
        require_no_proposals(store, "extended by draws of the prior")
        with filling(store, alone=True):
            store = SimulationStore.open(path)
            store.extend(max(rows, store.rows))


def _still(path: Path, rows: int) -> SimulationStore:
    """The store as it is now that it is held."""
    store = SimulationStore.open(path)
    if rows < store.rows:
        raise StoreError(
            f"`rows` must be at least the {store.rows} that the store {path} has; got {rows}: give another path"
        )
    return store


def _note_attempts(store: SimulationStore, attempts: int) -> None:
    """So that `retry` begins with random numbers that no row has seen."""
    if int(store.attributes.get("attempts", 1)) < attempts:
        store.annotate({"attempts": attempts})


def _require_same(own: dict[str, Any], theirs: dict[str, Any], path: Path) -> None:
    differing = [key for key in {**own, **theirs} if theirs.get(key) != own.get(key)]
    if differing:
        raise StoreError(
            f"the store {path} belongs to another campaign: it differs in {', '.join(differing)}: "
            "give another path, or remove the store"
        )


def _without_source(campaign: dict[str, Any]) -> dict[str, Any]:
    simulator = {k: v for k, v in (campaign.get("simulator") or {}).items() if k not in ("source", "version")}
    return {**campaign, "simulator": simulator}


def _require_whole_groups(simulator: Simulator, rows: int) -> None:
    size = group_size_of(simulator)
    if rows % size:
        raise StoreError(f"`rows` must be a multiple of the {size} that share one theta; got {rows}")


def _own_seed(store: SimulationStore) -> int:
    seed = store.attributes["campaign"].get("seed")
    if not isinstance(seed, int):
        raise UnsupportedError(f"the store {store.path} was merged or imported: only a campaign of its own can go on")
    return seed


def _report(shard: int, records: Records, start: int, prior: Prior) -> ShardReport:
    found = np.bincount(records.status, minlength=len(STATUS))
    counts = {name: int(n) for name, n in zip(STATUS, found, strict=True)}
    problems = {}
    for status in _BAD:
        rows = np.flatnonzero(records.status == status)
        if len(rows) and records.reason is not None:
            named = ", ".join(f"{n} = {v:.6g}" for n, v in zip(prior.names, records.theta[rows[0]], strict=True))
            problems[STATUS[status]] = f"row {start + rows[0]} ({named}): {records.reason[rows[0]]}"
    return ShardReport(shard, counts, problems)


def _judge(report: ShardReport, on_invalid: OnInvalid, told: dict[str, str]) -> None:
    """Stop, or tell of each kind of problem once."""
    if report.problems and on_invalid == "fail":
        raise SimulatorError(f"{_first(report.problems)} (`on_invalid: fail`; `mask` would leave such rows out)")
    for status, problem in report.problems.items():
        if status not in told:
            told[status] = problem
            logger.warning("some rows are %s, such as %s; the others are counted in `simfer status`", status, problem)


def _first(problems: dict[str, str]) -> str:
    return next(iter(problems.values()))


def _require_none_bad(store: SimulationStore) -> None:
    bad = np.flatnonzero(np.isin(store.status, _BAD))
    if len(bad):
        row = int(bad[0])
        reason = store.reasons(slice(row, row + 1))[0]
        raise SimulatorError(
            f"row {row} of {store.path}: {reason} (`on_invalid: fail`; `mask` would leave such rows out)"
        )


def _require_some_ok(store: SimulationStore) -> None:
    counts = store.counts()
    if not counts["ok"]:
        bad = ", ".join(f"{n} {STATUS[status]}" for status in _BAD if (n := counts[STATUS[status]]))
        reasons = store.reasons()
        raise SimulatorError(
            f"none of the {store.rows} simulations is usable ({bad}; the first: {reasons[0]}): "
            "check the simulator and the prior's range"
        )


@cache
def _loaded(reference: Reference) -> Simulator:
    return reference.load()

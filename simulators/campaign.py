"""Campaigns: fill a store with simulations on any executor, stop anywhere, go on, and end with the same bytes.

Randomness belongs to the block, not to the worker (`block`). A row that cannot be simulated is recorded with its reason
and costs nothing but itself, whether its simulator raises, hangs, crashes or is killed (`guard`, `trail`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..data import registry
from ..data.errors import CorruptStoreError, SimferError, SimulatorError, StoreError, UnsupportedError
from ..data.files import fingerprint
from ..data.layout import Block
from ..data.proposals import proposed, verify_proposals
from ..data.records import FAILED, INVALID, PENDING, STATUS, TIMEOUT, Records
from ..data.stopping import stop_asked, stop_if_asked
from ..data.store import SimulationStore
from .base import ContextPrior, Simulator, context_of
from .begin import begin, identity, note_attempts, require_same, still
from .block import BlockSimulator, Protection, attempts_of, draw_theta
from .prior import Prior
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
        campaign: Hash of the campaign whose store it is: nothing is written into another's that has taken its place.
    """

    store: Path
    simulator: Simulator | Reference
    prior: Prior
    seed: int
    protection: Protection = field(default_factory=Protection)
    context: ContextPrior | None = None
    again: tuple[int, ...] = ()
    attempt: int = 0
    campaign: str = field(kw_only=True)

    def __call__(self, shard: int) -> ShardReport:
        stop_if_asked()
        simulator = _loaded(self.simulator) if isinstance(self.simulator, Reference) else self.simulator
        store = SimulationStore.open(self.store)
        rows = store.layout.shard_rows(shard)
        begun = store.is_whole(shard) and (store.read_array("status", rows) != PENDING).any()
        before = store.read_records(rows) if begun else None
        with Trail(self.store, shard) as trail:
            parts: list[Records] = []
            stopped = False
            try:
                for block in store.layout.blocks(shard):
                    parts.append(self._block(simulator, store, trail, block, before))
                    if stop_asked():
                        break
            except KeyboardInterrupt:
                stopped = True
                if not parts:
                    raise
            done = rows.start + sum(part.rows for part in parts)
            if done < rows.stop:  # what is not there yet is read as pending
                parts.append(store.read_records(slice(done, rows.stop)))
            records = Records.join(parts, store.schema)
            self._require_same_campaign()
            store.write_shard(shard, records)
            trail.end()
        if stopped or done < rows.stop:
            raise KeyboardInterrupt
        return _report(shard, records, rows.start, self.prior)

    def _require_same_campaign(self) -> None:
        if SimulationStore.open(self.store).attributes["campaign_hash"] != self.campaign:
            raise StoreError(
                f"the store {self.store} is another campaign's by now: what was simulated for the former one is not written"
            )

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


@dataclass(frozen=True, slots=True)
class _Named:
    """A task whose errors say which shard they are of."""

    task: FillShard

    def __call__(self, shard: int) -> ShardReport:
        try:
            return self.task(shard)
        except SimferError as error:
            raise type(error)(f"shard {shard}: {error}") from error


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
    shards: int | None = None,
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
        shards: Parts of the store that can be written at the same time, at least; likewise.
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
    store = begin(
        simulator,
        rows,
        path,
        seed=seed,
        prior=prior,
        context=context,
        protection=protection,
        block=block,
        shards=shards,
    )
    task = FillShard(
        store.path.absolute(),
        reference or simulator,
        prior,
        seed,
        protection,
        context,
        campaign=store.attributes["campaign_hash"],
    )
    with filling(store):
        store = still(store.path, rows)
        note_attempts(store, attempts_of(simulator, protection))
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


def fill_shards(
    simulator: Simulator,
    path: str | Path,
    shards: Sequence[int],
    *,
    prior: Prior,
    context: ContextPrior | None,
    executor: Executor,
    on_invalid: OnInvalid,
    protection: Protection,
    reference: Reference | None,
    progress: Callable[[int], None],
) -> None:
    """Fill some shards of a campaign that others fill the rest of, on other machines as well: `begin` made its store.

    Arguments are those of `simulate`; ``shards`` that are whole are left as they are.

    Raises:
        StoreError: The store belongs to another campaign.
        SimulatorError: As `simulate`.
    """
    store = SimulationStore.open(path)
    require_same(
        identity(simulator, prior, _own_seed(store), context or context_of(simulator)),
        store.attributes["campaign"],
        store.path,
    )
    campaign = store.attributes["campaign_hash"]
    task = _Named(
        FillShard(store.path, reference or simulator, prior, _own_seed(store), protection, context, campaign=campaign)
    )
    with filling(store, sweep=False):  # locks may not reach other machines: what looks left may be being written
        _fill(task, store, store.pending_shards(shards), executor, on_invalid, progress)


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
    require_same(_without_source(own), _without_source(store.attributes["campaign"]), store.path)
    with filling(store, alone=True):
        store = SimulationStore.open(path)
        attempt = int(store.attributes.get("attempts", 1))
        mended = {"campaign": own, "campaign_hash": fingerprint(own)}
        store.annotate({**mended, "attempts": attempt + attempts_of(simulator, protection)})
    sent, again = reference or simulator, (FAILED, TIMEOUT)
    task = FillShard(
        store.path.absolute(), sent, prior, own["seed"], protection, context, again, attempt, campaign=fingerprint(own)
    )
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


class _InThisProcess:
    def map(self, task: Callable[[int], ShardReport], items: Iterable[int]) -> Iterator[ShardReport]:
        return map(task, items)


def _fill(
    task: Callable[[int], ShardReport],
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


def _without_source(campaign: dict[str, Any]) -> dict[str, Any]:
    simulator = {k: v for k, v in (campaign.get("simulator") or {}).items() if k not in ("source", "version")}
    return {**campaign, "simulator": simulator}


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
        raise SimulatorError(
            f"shard {report.shard}, {_first(report.problems)} (`on_invalid: fail`; `mask` would leave such rows out)"
        )
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

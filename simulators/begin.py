"""Begin a campaign, or find the one that is there: its identity, and a store with as many rows as are wanted."""

from __future__ import annotations

import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..data.errors import StoreError
from ..data.files import fingerprint
from ..data.layout import Layout
from ..data.proposals import require_no_proposals
from ..data.records import NOTHING, Schema
from ..data.store import SimulationStore
from .base import ContextPrior, HasBaseNumbers, Simulator, context_of, describe
from .block import Protection, group_size_of
from .prior import Prior
from .probe import probe
from .trail import filling


def begin(
    simulator: Simulator,
    rows: int,
    path: str | Path,
    *,
    seed: int,
    prior: Prior,
    context: ContextPrior | None,
    protection: Protection,
    block: int | None = None,
    shards: int | None = None,
) -> SimulationStore:
    """The store at ``path`` with ``rows`` rows, made, or given what it lacks; nothing is simulated but a probe.

    Raises:
        StoreError: The store belongs to another campaign; says what differs.
        SimulatorError: The simulator breaks its contract.
    """
    own = identity(simulator, prior, seed, context)
    _require_whole_groups(simulator, rows)
    if Path(path).exists():
        _grow(own, rows, Path(path))
    else:
        probe(simulator, prior, protection, context)
        _create(simulator, prior, context, own, rows, Path(path), block, shards)
    return SimulationStore.open(path)


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


def _create(
    simulator: Simulator,
    prior: Prior,
    context: ContextPrior | None,
    own: dict[str, Any],
    rows: int,
    path: Path,
    block: int | None,
    shards: int | None,
) -> SimulationStore:
    attributes = {
        "campaign": own,
        "campaign_hash": fingerprint(own),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "versions": {name: version(name) for name in ("simfer", "numpy", "torch", "zarr")},
    }
    layout = Layout.choose(rows, simulator.observables, block=block, multiple=group_size_of(simulator), shards=shards)
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
    require_same(own, theirs, path)
    if rows > store.rows:
        require_no_proposals(store, "extended by draws of the prior")
        with filling(store, alone=True):
            store = SimulationStore.open(path)
            store.extend(max(rows, store.rows))


def still(path: Path, rows: int) -> SimulationStore:
    """The store as it is now that it is held."""
    store = SimulationStore.open(path)
    if rows < store.rows:
        raise StoreError(
            f"`rows` must be at least the {store.rows} that the store {path} has; got {rows}: give another path"
        )
    return store


def note_attempts(store: SimulationStore, attempts: int) -> None:
    """So that `retry` begins with random numbers that no row has seen."""
    if int(store.attributes.get("attempts", 1)) < attempts:
        store.annotate({"attempts": attempts})


def require_same(own: dict[str, Any], theirs: dict[str, Any], path: Path) -> None:
    """Raise StoreError where two campaigns are not the same one."""
    differing = [key for key in {**own, **theirs} if theirs.get(key) != own.get(key)]
    if differing:
        raise StoreError(
            f"the store {path} belongs to another campaign: it differs in {', '.join(differing)}: "
            "give another path, or remove the store"
        )


def _require_whole_groups(simulator: Simulator, rows: int) -> None:
    size = group_size_of(simulator)
    if rows % size:
        raise StoreError(f"`rows` must be a multiple of the {size} that share one theta; got {rows}")

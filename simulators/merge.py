"""Merge campaigns of one model into one store: the same simulator, prior and observables, other random numbers."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..data.building import bounded_layout, new_store
from ..data.errors import ShapeError, StoreError
from ..data.files import fingerprint
from ..data.proposals import require_no_proposals
from ..data.records import Records
from ..data.store import SimulationStore, require_finished

_OWN = ("seed", "source", "sources")  # what the campaigns of one model may differ in


def merge(
    paths: Sequence[str | Path], out: str | Path, *, progress: Callable[[int], None] = lambda rows: None
) -> SimulationStore:
    """Copy the rows of several finished stores, one store after the other, into a new one, a shard at a time.

    Group numbers are shifted so that no group of one store is taken for a group of another. The new store says where
    its rows come from and has no seed of its own: it cannot be extended, but merged again.

    Args:
        paths: At least two stores.
        out: Folder of the new store.
        progress: Called with the number of rows just written.

    Raises:
        ShapeError: Fewer than two stores.
        MissingFileError: No store there.
        StoreError: Something is at ``out``, stores of different models, unfinished ones, or some of the same seed, which
            would hold the same draws twice.
        CorruptStoreError: A checksum does not fit, or a file is missing.
    """
    if len(paths) < 2:
        raise ShapeError(f"`paths` must name at least two stores to merge; got {len(paths)}")
    stores = [SimulationStore.open(path) for path in paths]
    for store in stores:
        require_finished(store)
        require_no_proposals(store, "merged")
        _require_same_model(stores[0], store)
    origins = [origin for store in stores for origin in _origins(store)]
    _require_distinct(origins)
    schema = stores[0].schema
    layout = bounded_layout(sum(store.rows for store in stores), schema)
    shifts = _shifts(stores)
    with new_store(Path(out), layout, schema, _attributes(stores[0], origins)) as merged:
        for shard in range(layout.shards):
            parts = list(_parts(stores, shifts, layout.shard_rows(shard)))
            merged.write_shard(shard, Records.join(parts, schema))
            progress(layout.shard_length(shard))
    return SimulationStore.open(out)


def _require_same_model(first: SimulationStore, other: SimulationStore) -> None:
    ours, theirs = (_model(store) for store in (first, other))
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if differing:
        raise StoreError(
            f"stores to be merged must be of the same model; {other.path} differs from {first.path} in "
            f"{', '.join(differing)}"
        )


def _model(store: SimulationStore) -> dict[str, Any]:
    """The identity of a campaign but for its seed, with what a simulator consists of one by one."""
    campaign = {key: value for key, value in store.attributes["campaign"].items() if key not in _OWN}
    simulator = {f"simulator.{key}": value for key, value in campaign.pop("simulator").items()}
    prior = {f"prior.{key}": value for key, value in campaign.pop("prior").items()}
    order = {"order of parameters": store.parameters.names}
    return {**simulator, **prior, **order, **campaign, "arrays": [name for name, _, _ in store.schema.arrays()]}


def _origins(store: SimulationStore) -> list[dict[str, Any]]:
    """The campaigns that a store's rows were simulated by, of a merged one those that it was merged of."""
    campaign = store.attributes["campaign"]
    if "sources" in campaign:
        return list(campaign["sources"])
    own = {"seed": campaign["seed"], "rows": store.rows, "campaign_hash": store.attributes["campaign_hash"]}
    return [{**own, **({"source": campaign["source"]} if "source" in campaign else {})}]


def _require_distinct(origins: Sequence[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for origin in origins:
        key = fingerprint(origin.get("source", origin["seed"]))
        if key in seen:
            what = "seed " + str(origin["seed"]) if "source" not in origin else "one imported file"
            raise StoreError(
                f"stores to be merged must have different seeds; two of them are of {what}, and rows of the same seed are "
                "the same draws: simulate one anew with another seed, or extend it by `simulate.rows`"
            )
        seen.add(key)


def _shifts(stores: Sequence[SimulationStore]) -> list[int]:
    """What to add to the group numbers of each store; nothing to those of the first."""
    if not stores[0].schema.grouped:
        return [0] * len(stores)
    ranges = [(int(group.min()), int(group.max())) for store in stores for group in [store.read_array("group")]]
    shifts, end = [0], ranges[0][1] + 1
    for low, high in ranges[1:]:
        shifts.append(end - low)
        end += high - low + 1
    if end > np.iinfo(np.int64).max:
        raise StoreError(f"group numbers of stores to be merged must fit 64 bits together; they would reach {end}")
    return shifts


def _parts(stores: Sequence[SimulationStore], shifts: Sequence[int], rows: slice) -> Iterator[Records]:
    """The rows of a slice of all rows, from each store that has some of them."""
    start = 0
    for store, shift in zip(stores, shifts, strict=True):
        first, last = max(rows.start - start, 0), min(rows.stop - start, store.rows)
        start += store.rows
        if first < last:
            records = store.read_records(slice(first, last))
            if records.group is not None:
                records.group[...] += shift
            yield records


def _attributes(first: SimulationStore, origins: list[dict[str, Any]]) -> dict[str, Any]:
    campaign = {key: value for key, value in first.attributes["campaign"].items() if key not in _OWN}
    campaign |= {"seed": None, "sources": origins}
    return {
        "campaign": campaign,
        "campaign_hash": fingerprint(campaign),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "versions": {name: version(name) for name in ("simfer", "numpy", "torch", "zarr")},
    }

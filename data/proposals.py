"""Rows of a store whose theta was drawn elsewhere: from the prior restricted to a region, as truncated rounds do.

Layout::

    proposals/1/theta (row, parameter)      what the rows of the first proposal are simulated at
    proposals/1/inside (row)                which of the rows before those lie in the region, too
    proposals/2/…

The attribute ``proposals`` lists them, with how they were drawn; it is written with the store's new length in one
step, and what it does not list does not count. A region lies within the one before it, so all rows inside the last one
are drawn from the prior restricted to it, whatever round they are of.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float
from zarr.codecs import Crc32cCodec, ZstdCodec

from .errors import CorruptStoreError, StoreError
from .store import SimulationStore

_CODECS = (ZstdCodec(level=3), Crc32cCodec())


def proposals(store: SimulationStore) -> list[dict[str, Any]]:
    """How the rows after the first ones were drawn, in order; ``first`` and ``last`` say which rows those are."""
    return list(store.attributes.get("proposals", []))


def propose(
    store: SimulationStore,
    theta: Float[np.ndarray, "rows parameter"],
    inside: Bool[np.ndarray, " before"],
    facts: dict[str, Any],
) -> None:
    """Add pending rows to be simulated at ``theta``; all of them or, killed, none.

    Args:
        store: Held by nobody else.
        theta: From the prior restricted to a region.
        inside: Which of the rows there are lie in it.
        facts: How it was drawn, as JSON.

    Raises:
        StoreError: ``inside`` is not of the rows there are, or no row is proposed.
    """
    if inside.shape != (store.rows,) or not len(theta):
        raise StoreError(
            f"`inside` must have one entry for each of the {store.rows} rows of {store.path}, and `theta` a row; "
            f"got {inside.shape} and {theta.shape}"
        )
    number = len(proposals(store)) + 1
    root = zarr.open_group(store.path, mode="r+", zarr_format=3, use_consolidated=False)
    group = root.create_group(f"proposals/{number}", overwrite=True)  # a kill may have left a part of it
    for name, values in (("theta", theta), ("inside", inside)):
        group.create_array(
            name,
            data=values,
            chunks=(min(len(values), 2**16), *values.shape[1:]),
            compressors=list(_CODECS),
            dimension_names=("row", "parameter")[: values.ndim],
        )
    own = {"first": store.rows, "last": store.rows + len(theta), "theta_sha256": _hash(theta), **facts}
    store.extend(store.rows + len(theta), {"proposals": [*proposals(store), own]})


def proposed(store: SimulationStore, rows: slice) -> np.ndarray | None:
    """theta that some rows of one block are to be simulated at; None where the prior decides."""
    for number, own in enumerate(proposals(store), 1):
        if own["first"] <= rows.start < own["last"]:
            return _read(store, number, "theta")[rows.start - own["first"] : rows.stop - own["first"]]
    return None


def inside(store: SimulationStore) -> Bool[np.ndarray, " rows"]:
    """Which rows lie in the last region; all of a store without any."""
    found = proposals(store)
    if not found:
        return np.ones(store.rows, dtype=bool)
    before = _read(store, len(found), "inside")[:]
    return np.concatenate([before, np.ones(store.rows - len(before), dtype=bool)])


def verify_proposals(store: SimulationStore) -> None:
    """See that proposals are as they were recorded.

    Raises:
        CorruptStoreError: Naming the one that is not.
    """
    for number, own in enumerate(proposals(store), 1):
        theta = _read(store, number, "theta")[:]
        if _hash(theta) != own["theta_sha256"]:
            raise CorruptStoreError(
                f"`proposals/{number}/theta` of {store.path} is not what the attributes say: restore it from a copy"
            )


def require_no_proposals(store: SimulationStore, what: str) -> None:
    """Raise StoreError where not all theta are from the prior itself."""
    found = proposals(store)
    if found:
        raise StoreError(
            f"{store.path} cannot be {what}: its rows from {found[0]['first']} on are drawn from a truncated prior, at one "
            "observation; use the store of the first round"
        )


def _read(store: SimulationStore, number: int, name: str) -> Any:
    try:
        return zarr.open_array(store.path / f"proposals/{number}/{name}", mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError) as error:
        raise CorruptStoreError(f"`proposals/{number}/{name}` of {store.path} cannot be read: {error}") from error


def _hash(theta: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(theta, dtype="<f8").tobytes()).hexdigest()

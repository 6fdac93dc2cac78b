"""A simulation store as a table, so that it is taken in, and exported, as any file is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .proposals import require_no_proposals
from .store import SimulationStore, require_finished
from .tables import Column
from .variables import Arrays


class StoreTable:
    """A simfer store; its arrays have the names they have on disk.

    Raises:
        StoreError: Rows are pending.
        CorruptStoreError: A file is missing.
    """

    def __init__(self, path: Path) -> None:
        self._store = SimulationStore.open(path)
        require_finished(self._store)
        require_no_proposals(self._store, "imported")
        self.description = describe_store(self._store)
        rows = self._store.rows
        self.columns = {
            name: Column((rows, *v.shape), np.dtype(v.dtype), v.units, v.label, v.dims)
            for name, v, _ in self._store.schema.arrays()
        }
        self.columns["reason"] = Column((rows,), np.dtype(object))

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        return {
            name: self._store.reasons(rows) if name == "reason" else self._store.read_array(name, rows)
            for name in names
        }

    def close(self) -> None:
        """Nothing is held open."""


def describe_store(store: SimulationStore) -> dict[str, Any]:
    """What an exported file says of the store it came from; enough to import it without a mapping."""
    campaign = store.attributes.get("campaign", {})
    return {
        "schema": store.schema.to_json(),
        "campaign": campaign,
        "campaign_hash": store.attributes.get("campaign_hash", ""),
    }

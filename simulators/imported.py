"""Simulations that were made elsewhere, in place of a simulator: from HDF5, NetCDF, npz, CSV, Parquet or another store."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..data.building import bounded_layout, new_store
from ..data.errors import MissingFileError, PriorError, ShapeError, SimulatorError
from ..data.files import fingerprint
from ..data.importing import Names, describe_file, describe_plan, resolve
from ..data.records import Records
from ..data.store import SimulationStore
from ..data.tables import Table, open_table
from .prior import Prior
from .recorded import RecordedContext

logger = logging.getLogger(__name__)


class Imported:
    """Stands where a simulator does, but cannot simulate.

    Args:
        files: One file or store, or several whose rows follow one another; ``*`` stands for any text.
        names: What is called how; not needed of a store, nor of a file that simfer exported.
        prior: What theta was drawn from; a store, or a file that simfer exported, knows it.

    Raises:
        MissingFileError: No such file.
        ConfigError: A kind of file that is not known.
        UnknownNameError: A dataset that is not there.
        ShapeError: Datasets that do not fit one another or the prior.
        PriorError: No prior, or another than the file's own.
        StoreError: A file that cannot be read.
    """

    def __init__(
        self, files: str | Path | Sequence[str | Path], names: Names | None = None, prior: Prior | None = None
    ) -> None:
        self.files = _found([files] if isinstance(files, str | Path) else files)
        with open_table(self.files) as table:
            known = _prior(table, prior)
            self._plan = resolve(table, names or Names(), known.variables)
        self.prior = known.with_units({p.name: p.units for p in self._plan.schema.parameters if p.units})
        self.observables = self._plan.schema.observables
        self.rows = self._plan.rows
        if len(self._plan.schema.context):
            self.context = RecordedContext(self._plan.schema.context)

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        raise SimulatorError(
            f"there is no simulator: the simulations were imported from {', '.join(f.name for f in self.files[:3])}"
        )

    def peek(self, rows: int) -> Records:
        """The first rows."""
        with open_table(self.files) as table:
            return self._plan.read(table, slice(0, min(rows, self.rows)))

    def campaign(self) -> dict[str, Any]:
        """The identity of a store made of these files, as a campaign's."""
        schema = self._plan.schema
        return {
            "simulator": {"class": "imported"},
            "prior": self.prior.to_json(),
            "observables": schema.observables.to_json(),
            "seed": None,
            "source": {"files": [describe_file(file) for file in self.files], "columns": describe_plan(self._plan)},
            **({"context": schema.context.to_json()} if len(schema.context) else {}),
            **({"u_shape": list(schema.u_shape)} if schema.u_shape else {}),
        }

    def write(
        self, path: str | Path, rows: int | None = None, progress: Callable[[int], None] = lambda rows: None
    ) -> SimulationStore:
        """Copy the rows into a new store, a shard at a time; there is either all of it or nothing.

        Args:
            path: Folder of the store.
            rows: Only the first so many.
            progress: Called with the number of rows just written.

        Raises:
            StoreError: Something is at ``path`` already.
            NotFiniteError: NaN in theta or context.
            PriorError: theta outside the prior's support.
            ShapeError: More rows than there are, or a value that is no number.
            SimulatorError: No row is usable.
        """
        path, rows = Path(path), self._checked(rows)
        plan = self._plan
        layout = bounded_layout(rows, plan.schema)
        with new_store(path, layout, plan.schema, self._attributes()) as store, open_table(self.files) as table:
            for shard in range(layout.shards):
                store.write_shard(shard, plan.read(table, layout.shard_rows(shard)))
                progress(layout.shard_length(shard))
            _require_usable(store)
        return SimulationStore.open(path)

    def _attributes(self) -> dict[str, Any]:
        campaign = self.campaign()
        return {
            "campaign": campaign,
            "campaign_hash": fingerprint(campaign),
            "imported_from": [str(file.resolve()) for file in self.files],
            "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
            "versions": {name: version(name) for name in ("simfer", "numpy", "torch", "zarr")},
        }

    def _checked(self, rows: int | None) -> int:
        if rows is not None and not 1 <= rows <= self.rows:
            raise ShapeError(f"`rows` must be between 1 and the {self.rows} there are to import; got {rows}")
        return self.rows if rows is None else rows


def import_simulations(
    files: str | Path | Sequence[str | Path],
    path: str | Path,
    names: Names | None = None,
    prior: Prior | None = None,
    *,
    rows: int | None = None,
) -> SimulationStore:
    """Make a simulation store of files that hold theta and x; see `Imported` and `Imported.write`."""
    return Imported(files, names, prior).write(path, rows)


def _found(files: Sequence[str | Path]) -> tuple[Path, ...]:
    found: list[Path] = []
    for file in map(Path, files):
        if "*" not in file.name:
            found.append(file)
            continue
        matching = sorted(file.parent.glob(file.name))
        if not matching:
            raise MissingFileError(f"no file `{file}` to import")
        found += matching
    if not found:
        raise MissingFileError("`import` must name at least one file; got none")
    return tuple(found)


def _prior(table: Table, given: Prior | None) -> Prior:
    described = (table.description or {}).get("campaign", {}).get("prior")
    if described is None:
        if given is None:
            raise PriorError("`prior` must be given, the one that theta was drawn from: the file does not say")
        return given
    own = Prior.from_json(described)
    if given is not None and _bare(given) != _bare(own):
        raise PriorError(
            f"`prior` must be the one that theta was drawn from, which the file says is {own}; got {given}: leave it out"
        )
    return given.with_units(own.units) if given is not None else own


def _bare(prior: Prior) -> list[tuple[str, dict[str, Any]]]:
    """The marginals in order, without units and labels."""
    described = prior.to_json()
    return [(name, {k: v for k, v in item.items() if k not in ("units", "label")}) for name, item in described.items()]


def _require_usable(store: SimulationStore) -> None:
    counts = store.counts()
    bad = {name: n for name, n in counts.items() if n and name != "ok"}
    if not counts["ok"]:
        raise SimulatorError(
            f"none of the {store.rows} imported rows is usable; the first is {store.reasons(slice(0, 1))[0]!r}"
        )
    if bad:
        listed = ", ".join(f"{n:,} {name}" for name, n in bad.items())
        logger.warning("of %s imported rows, %s are not usable: `simfer status` counts them", f"{store.rows:,}", listed)

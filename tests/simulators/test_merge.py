"""Merging: all rows of all stores in order, groups kept apart, and nothing that would count a draw twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simfer.data import building
from simfer.data.errors import CorruptStoreError, MissingFileError, ShapeError, StoreError, UnsupportedError
from simfer.data.store import SimulationStore
from simfer.data.variables import Variable, Variables
from simfer.simulators.campaign import retry, simulate, verify
from simfer.simulators.imported import Imported
from simfer.simulators.merge import merge
from simfer.simulators.prior import Prior


class Line:
    prior = Prior({name: {"dist": "Normal", "loc": 0.0, "scale": 1.0} for name in ("a", "b")})
    observables = Variables([Variable("x", (2,))])
    noise = 0.5

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": theta + self.noise * rng.standard_normal(theta.shape)}


class Universe(Line):
    group_size = 5
    context = Prior({"exposure": {"dist": "Uniform", "low": 1.0, "high": 2.0}})


class Noisier(Line):
    noise = 0.7

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength


def campaigns(folder: Path, model: Any, *rows: int) -> list[Path]:
    return [simulate(model, n, folder / f"seed{seed}.zarr", seed=seed).path for seed, n in enumerate(rows)]


def test_rows_follow_one_another(tmp_path: Path) -> None:
    paths = campaigns(tmp_path, Universe(), 330, 65, 100)
    stores = [SimulationStore.open(path) for path in paths]
    merged = merge(paths, tmp_path / "all.zarr")
    assert merged.rows == 495
    for name in ("theta", "x", "context/exposure", "status"):
        expected = np.concatenate([store.read_array(name) for store in stores])
        np.testing.assert_array_equal(merged.read_array(name), expected)
    group = merged.read_array("group")
    assert len(np.unique(group)) == 99
    starts = np.cumsum([0, 330, 65, 100])
    for store, start, stop in zip(stores, starts[:-1], starts[1:], strict=True):
        own = store.read_array("group")
        assert (np.unique(own, return_inverse=True)[1] == np.unique(group[start:stop], return_inverse=True)[1]).all()
    verify(merged)


def test_the_merged_store_names_its_sources(tmp_path: Path) -> None:
    a, b, c = campaigns(tmp_path, Line(), 60, 70, 80)
    first = merge([a, b], tmp_path / "ab.zarr")
    nested = merge([first.path, c], tmp_path / "abc.zarr")
    campaign = nested.attributes["campaign"]
    assert [(source["seed"], source["rows"]) for source in campaign["sources"]] == [(0, 60), (1, 70), (2, 80)]
    assert campaign["seed"] is None
    assert {"simulator", "prior", "observables"} < set(campaign)


def test_equal_seeds_are_refused_also_within_merged_stores(tmp_path: Path) -> None:
    a, b, c = campaigns(tmp_path, Line(), 60, 70, 80)
    with pytest.raises(StoreError, match=r"two of them are of seed 0, .* the same draws"):
        merge([a, a], tmp_path / "out.zarr")
    first = merge([a, b], tmp_path / "ab.zarr")
    second = merge([b, c], tmp_path / "bc.zarr")
    with pytest.raises(StoreError, match="seed 1"):
        merge([first.path, second.path], tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


@pytest.fixture(autouse=True)
def _several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_SHARD_BYTES", 4000)


@pytest.mark.parametrize(
    ("model", "prior", "message"),
    [
        (Noisier(), None, "simulator.class"),
        (Line(), {"a": {"dist": "Normal", "loc": 0.5, "scale": 1.0}}, "differs from .* in prior.a"),
    ],
)
def test_other_models_are_refused_and_what_differs_is_said(
    model: Any, prior: Any, message: str, tmp_path: Path
) -> None:
    (path,) = campaigns(tmp_path, Line(), 40)
    other = simulate(model, 40, tmp_path / "b.zarr", seed=7, prior=Line.prior.replace(prior or {}))
    with pytest.raises(StoreError, match=message):
        merge([path, other.path], tmp_path / "out.zarr")


def test_arguments_of_a_simulator_count(tmp_path: Path) -> None:
    stores = [
        simulate(Noisier(strength), 40, tmp_path / f"{seed}.zarr", seed=seed).path
        for seed, strength in enumerate((1.0, 2.0))
    ]
    with pytest.raises(StoreError, match=r"in simulator.arguments$"):
        merge(stores, tmp_path / "out.zarr")


def test_unfinished_stores_are_refused(tmp_path: Path) -> None:
    paths = campaigns(tmp_path, Line(), 100, 90)
    SimulationStore.open(paths[1]).discard(0)
    with pytest.raises(StoreError, match=r"all rows .* must be done; \d+ of 90 are pending: finish its campaign"):
        merge(paths, tmp_path / "out.zarr")
    with pytest.raises(StoreError, match=r"all rows .* must be done; \d+ of 90 are pending"):
        Imported(paths[1])
    with pytest.raises(ShapeError, match="at least two"):
        merge(paths[:1], tmp_path / "out.zarr")
    with pytest.raises(MissingFileError):
        merge([paths[0], tmp_path / "none.zarr"], tmp_path / "out.zarr")


def test_stores_with_a_missing_file_are_refused(tmp_path: Path) -> None:
    paths = campaigns(tmp_path, Line(), 100, 90)
    shutil.rmtree(paths[1] / "x" / "c" / "0")
    with pytest.raises(CorruptStoreError, match="shard 0: marked done but a file is missing"):
        merge(paths, tmp_path / "out.zarr")


def test_merged_and_imported_stores_cannot_go_on(tmp_path: Path) -> None:
    merged = merge(campaigns(tmp_path, Line(), 60, 70), tmp_path / "all.zarr")
    with pytest.raises(StoreError, match="was merged, and only a campaign of its own can go on"):
        simulate(Line(), 200, merged.path, seed=0)
    with pytest.raises(UnsupportedError, match="merged or imported"):
        retry(Line(), merged.path)
    imported = Imported(merged.path).write(tmp_path / "copy.zarr")
    with pytest.raises(StoreError, match="was imported"):
        simulate(Line(), 200, imported.path, seed=0)
    verify(imported)


def test_imported_stores_merge_unless_they_are_of_one_file(tmp_path: Path) -> None:
    paths = campaigns(tmp_path, Line(), 60, 70)
    copies = [Imported(path).write(tmp_path / f"copy-{path.name}").path for path in paths]
    assert merge(copies, tmp_path / "out.zarr").rows == 130
    again = Imported(paths[0]).write(tmp_path / "again.zarr")
    with pytest.raises(StoreError, match="one imported file"):
        merge([copies[0], again.path], tmp_path / "twice.zarr")

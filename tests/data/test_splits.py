"""Held-out rows: the last ones, and never a part of a group."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfer.data.errors import ShapeError
from simfer.data.layout import Layout
from simfer.data.loaders import as_batch
from simfer.data.records import OK, Records, Schema
from simfer.data.splits import held_out, hold_out, last_rows
from simfer.data.store import SimulationStore
from simfer.data.variables import Variable, Variables
from simfer.estimators.train import split


def make_store(path: Path, group: np.ndarray | None, rows: int = 20) -> SimulationStore:
    schema = Schema(Variables([Variable("a")]), Variables([Variable("x")]), grouped=group is not None)
    layout = Layout.choose(rows, schema.observables)
    store = SimulationStore.create(path, layout, schema, {})
    for shard in range(layout.shards):
        part = layout.shard_rows(shard)
        n = layout.shard_length(shard)
        records = Records(
            np.zeros((n, 1)), {"x": np.zeros(n)}, np.full(n, OK, np.int8), np.zeros(n, np.float32),
            group=None if group is None else group[part],
        )  # fmt: skip
        store.write_shard(shard, records)
    return store


def test_without_groups_the_last_rows_are_held_out(tmp_path: Path) -> None:
    held = held_out(make_store(tmp_path / "a.zarr", None), 6)
    assert np.flatnonzero(held).tolist() == list(range(14, 20))
    assert not held_out(make_store(tmp_path / "b.zarr", None), 0).any()


def test_groups_are_held_out_whole(tmp_path: Path) -> None:
    held = held_out(make_store(tmp_path / "a.zarr", np.arange(20) // 4), 6)
    assert np.flatnonzero(held).tolist() == list(range(12, 20))
    assert not held_out(make_store(tmp_path / "b.zarr", np.arange(20) // 4), 0).any()


def test_something_must_be_left(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"`diagnose.pairs` holds out groups that hold 6 rows, which is all"):
        held_out(make_store(tmp_path / "a.zarr", np.zeros(20, np.int64)), 6)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 6), min_size=1, max_size=60), st.integers(1, 60))
def test_no_group_is_on_both_sides_and_no_more_are_held_than_needed(names: list[int], count: int) -> None:
    group = np.array(names)
    count = min(count, len(group))
    held = last_rows(len(group), count, group)
    assert not set(group[held]) & set(group[~held])
    assert held.sum() >= count
    assert held[-1]
    order = list(dict.fromkeys(group[::-1].tolist()))
    first_held = [name for name in order if name in set(group[held].tolist())]
    assert order[: len(first_held)] == first_held
    assert held.sum() - (group == first_held[-1]).sum() < count


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.floats(0.05, 0.9), st.booleans())
def test_arrays_are_split_as_stores_are(names: list[int], fraction: float, grouped: bool) -> None:
    group = np.array(names) if grouped else None
    index = np.arange(len(names), dtype=np.float64)
    rows = as_batch(index[:, None], {"x": index})
    try:
        masks = hold_out(np.ones(len(names), bool), fraction, group)
    except ShapeError as error:
        with pytest.raises(ShapeError, match=re.escape(str(error))):
            split(rows, fraction, group)
        return
    for part, mask in zip(split(rows, fraction, group), masks, strict=True):
        np.testing.assert_array_equal(part.theta[:, 0], index[mask])


def test_validation_keeps_groups_together(rng: np.random.Generator) -> None:
    group = np.repeat(rng.permutation(30), 5)
    rows = as_batch(group[:, None].astype(float), {"x": group})
    learn, validate = split(rows, 0.1, group)
    assert not set(learn.theta[:, 0].tolist()) & set(validate.theta[:, 0].tolist())
    assert validate.rows == 15
    with pytest.raises(ShapeError, match="at least 2 groups"):
        split(rows, 0.1, np.zeros(150))

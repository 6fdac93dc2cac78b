from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import NotFiniteError, ShapeError, SimulatorError
from simfer.data.layout import Layout
from simfer.data.loaders import Loader, Portions, WholeBatches, as_batch, valid_rows
from simfer.data.records import OK, Records, Schema
from simfer.data.store import SimulationStore
from simfer.data.streaming import StoredRows
from simfer.data.variables import Arrays, Variable, Variables


def rows(n: int) -> Batch:
    index = torch.arange(n, dtype=torch.float64)
    return Batch(index[:, None], {"x": index.float()})


def epoch(loader: WholeBatches) -> list[list[int]]:
    return [batch.theta[:, 0].int().tolist() for batch in loader]


def test_every_row_once_an_epoch_and_another_order_the_next() -> None:
    loader = WholeBatches(rows(20), 5, seed=3)
    first, second = epoch(loader), epoch(loader)
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(20))
    assert first != second


def test_theta_and_x_stay_together() -> None:
    for batch in WholeBatches(rows(20), 7, seed=0):
        torch.testing.assert_close(batch.theta[:, 0].float(), batch.x["x"])


def test_unshuffled_loader_keeps_order_and_the_last_rows() -> None:
    assert epoch(WholeBatches(rows(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_shuffled_loader_drops_a_smaller_last_batch() -> None:
    assert [len(batch) for batch in epoch(WholeBatches(rows(7), 3, seed=0))] == [3, 3]


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_in_mid_epoch_gives_the_very_next_batch(stop: int) -> None:
    whole = WholeBatches(rows(20), 5, seed=1)
    expected = epoch(whole) + epoch(whole)
    loader = WholeBatches(rows(20), 5, seed=1)
    seen = []
    for batch in loader:
        seen.append(batch.theta[:, 0].int().tolist())
        if len(seen) == stop:
            break
    resumed = WholeBatches(rows(20), 5, seed=1)
    resumed.load_state_dict(loader.state_dict())
    while len(seen) < 8:
        seen.extend(epoch(resumed))
    assert seen == expected


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"`rows` must be at least one for each of 1 process\(es\); got 0"):
        WholeBatches(rows(0), 5)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_every_batch(world: int) -> None:
    """Together they see the batches of one process, in its order."""
    whole = epoch(WholeBatches(rows(20), 5, seed=1))
    loaders = [WholeBatches(rows(20), 5, seed=1, rank=rank, world=world) for rank in range(world)]
    shares = [epoch(loader) for loader in loaders]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    for loader, share in zip(loaders, shares, strict=True):
        assert [loader.numbers(step).tolist() for step in range(len(loader))] == share
    unshuffled = [epoch(WholeBatches(rows(20), 3, rank=rank, world=world)) for rank in range(world)]
    assert list(itertools.chain(*itertools.chain(*unshuffled))) == list(range(20))


def test_more_processes_than_there_is_for_them_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"`batch_size` must be at least one for each of 4 processes; got 3"):
        WholeBatches(rows(20), 3, seed=1, world=4)
    with pytest.raises(ShapeError, match=r"`rows` must be at least one for each of 4 process\(es\); got 3"):
        WholeBatches(rows(3), 3, world=4)


@pytest.mark.parametrize(("resident", "device"), [(True, "meta"), (None, "meta"), (False, "cpu")])
def test_rows_move_to_the_device_unless_told_not_to(resident: bool | None, device: str) -> None:
    loader = WholeBatches(rows(20), 5, resident=resident)
    loader.to(torch.device("meta"))
    assert loader.rows.theta.device.type == device
    assert isinstance(loader, Loader)


def test_portions_are_all_rows_in_order_as_often_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simfer.data.loaders._PART_BYTES", 60)
    portions = Portions(rows(17))
    for _ in range(2):
        parts = list(portions)
        assert len(parts) > 1
        assert torch.cat([part.theta for part in parts])[:, 0].tolist() == list(range(17))


def test_rows_from_all_over_a_store_are_read_without_those_between_and_keep_their_dtypes(tmp_path: Path) -> None:
    block, blocks, width = 50, 40, 1000
    schema = Schema(
        Variables([Variable("a")]), Variables([Variable("x", (width,)), Variable("n", (), "uint16")]),
        Variables([Variable("sd", (), "float32")]),
    )  # fmt: skip
    store = SimulationStore.create(tmp_path / "s.zarr", Layout(block * blocks, block, 5 * block), schema, {})
    for shard in range(store.layout.shards):
        part = store.layout.shard_rows(shard)
        index = np.arange(part.start, part.stop, dtype=np.float64)
        x: Arrays = {"x": index[:, None] + np.linspace(0.0, 0.1, width), "n": index.astype(np.uint16)}
        status, runtime = np.full(len(index), OK, np.int8), np.zeros(len(index), np.float32)
        store.write_shard(shard, Records(index[:, None], x, status, runtime, {"sd": np.sqrt(index).astype(np.float32)}))
    wanted = np.arange(store.rows) % 50 == 7
    valid_rows(store, slice(0, 1))  # what is imported and cached the first time does not count
    tracemalloc.start()
    theta, x = valid_rows(store, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * width * store.rows / 4
    expected = {**store.read()[1], "sd": store.read_array("context/sd")}
    assert list(x) == list(expected)
    np.testing.assert_array_equal(theta, store.read_array("theta")[wanted])
    for name, values in expected.items():
        assert x[name].dtype == values.dtype
        np.testing.assert_array_equal(x[name], values[wanted])


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_numbers_that_float32_cannot_hold_are_refused(scale: float, line, tmp_path: Path) -> None:
    """From arrays and from a store; a few that become 0 among others are not."""
    theta = np.zeros((4, 2))
    with pytest.raises(
        NotFiniteError, match=r"`x\['y'\]` must be numbers that float32 can hold, .*: choose another unit"
    ):
        as_batch(theta, {"y": scale * np.arange(4.0)})
    assert as_batch(theta, {"y": np.array([1.0, 1e-300, np.nan, np.inf])}).x["y"].tolist()[1] == 0.0
    monstrous = type(
        "Monstrous", (type(line),), {"simulate": lambda self, theta, rng, context=None: {"x": scale * theta}}
    )()
    if scale > 1:  # the campaign says so already
        with pytest.raises(SimulatorError, match="the first: beyond float32, 3e38: x"):
            simfer.simulate(monstrous, 50, tmp_path / "scaled.zarr")
        return
    store = simfer.simulate(monstrous, 50, tmp_path / "scaled.zarr")
    with pytest.raises(NotFiniteError, match=r"`x\['x'\]` must be numbers that float32 can hold"):
        StoredRows(store, np.ones(50, dtype=bool), 10**8).load()

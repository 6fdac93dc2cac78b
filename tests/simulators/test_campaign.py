from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from simfer.data.errors import ContractError, SimulatorError, StoreError
from simfer.data.store import SimulationStore
from simfer.pipelines.executors import Inline, Processes
from simfer.simulators.campaign import Executor, simulate, verify
from simfer.simulators.two_moons import TwoMoons

ROWS = 35_500  # 36 blocks in 18 shards, the last block half full


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> SimulationStore:
    return simulate(TwoMoons(), ROWS, tmp_path_factory.mktemp("ref") / "s.zarr", seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [Inline(), Processes(1), Processes(2)], ids=["inline", "processes1", "processes2"])
def test_every_executor_writes_the_same_bytes(reference: SimulationStore, tmp_path: Path, executor: Executor) -> None:
    store = simulate(TwoMoons(), ROWS, tmp_path / "s.zarr", seed=7, executor=executor)
    assert store.digest() == reference.digest()


def test_another_seed_writes_other_bytes(reference: SimulationStore, tmp_path: Path) -> None:
    assert simulate(TwoMoons(), ROWS, tmp_path / "s.zarr", seed=8).digest() != reference.digest()


def test_an_interrupted_campaign_resumes_to_the_same_bytes(reference: SimulationStore, tmp_path: Path) -> None:
    class Stops:
        def map(self, task, items):
            for i, item in enumerate(items):
                if i == 3:
                    raise KeyboardInterrupt
                yield task(item)

    with pytest.raises(KeyboardInterrupt):
        simulate(TwoMoons(), ROWS, tmp_path / "s.zarr", seed=7, executor=Stops())
    half = SimulationStore.open(tmp_path / "s.zarr")
    assert len(half.pending_shards()) == half.layout.shards - 3
    (tmp_path / "s.zarr" / "x" / "c" / "4.orphan.partial").write_bytes(b"half")
    done: list[int] = []
    assert SimulationStore.open(tmp_path / "s.zarr").pending_shards() == half.pending_shards()
    store = simulate(TwoMoons(), ROWS, tmp_path / "s.zarr", seed=7, progress=done.append)
    assert done[0] == 3 * half.layout.shard
    assert sum(done) == ROWS
    assert store.digest() == reference.digest()
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))


def test_no_two_blocks_share_randomness(reference: SimulationStore) -> None:
    theta, _ = reference.read()
    assert len(np.unique(theta, axis=0)) == ROWS


def test_another_campaigns_store_is_refused(reference: SimulationStore) -> None:
    with pytest.raises(StoreError, match="belongs to another campaign: it differs in seed"):
        simulate(TwoMoons(), ROWS, reference.path, seed=8)
    with pytest.raises(StoreError, match=f"`rows` must be at least the {ROWS}"):
        simulate(TwoMoons(), ROWS - 1, reference.path, seed=7)


@pytest.mark.parametrize("first", [4000, 4500])
def test_an_extended_campaign_keeps_its_rows_and_does_not_depend_on_the_executor(tmp_path: Path, first: int) -> None:
    digests = set()
    for executor in (Inline(), Processes(2)):
        path = tmp_path / f"{type(executor).__name__}.zarr"
        before = simulate(TwoMoons(), first, path, seed=7, block=1000).read()
        store = simulate(TwoMoons(), 9200, path, seed=7, executor=executor)
        np.testing.assert_array_equal(store.read(slice(0, first))[0], before[0])
        np.testing.assert_array_equal(store.read(slice(0, first))[1]["x"], before[1]["x"])
        assert store.counts()["ok"] == 9200
        assert len(np.unique(store.read()[0], axis=0)) == 9200
        verify(store)
        digests.add(store.digest())
    assert len(digests) == 1
    whole = simulate(TwoMoons(), 9200, tmp_path / "whole.zarr", seed=7, block=1000)
    assert (whole.digest() in digests) == (first == 4000)  # where a block ends, nothing tells them apart


class Odd(TwoMoons):
    """Raises for a whole batch that holds t1 > 0.9, and for such rows; NaN where t1 < -0.9."""

    def simulate(self, theta, rng, context=None):
        if (theta[:, 0] > 0.9).any():
            raise FloatingPointError("t1 is too large")
        x = super().simulate(theta, rng)["x"]
        x[theta[:, 0] < -0.9] = np.nan
        return {"x": x}


def test_bad_rows_cost_only_themselves(tmp_path: Path) -> None:
    store = simulate(Odd(), 2000, tmp_path / "s.zarr")
    theta, x = store.read()
    np.testing.assert_array_equal(store.status == 3, theta[:, 0] > 0.9)
    np.testing.assert_array_equal(store.status == 2, theta[:, 0] < -0.9)
    np.testing.assert_array_equal(np.isfinite(x["x"]).all(1), store.status == 1)


def test_on_invalid_fail_names_row_and_reason(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"row 25 \(t1 = -0.9.*\): not finite: x \(`on_invalid: fail`"):
        simulate(Odd(), 2000, tmp_path / "s.zarr", on_invalid="fail")


class AlwaysRaises(TwoMoons):
    def simulate(self, theta, rng, context=None):
        raise ZeroDivisionError("never")


class AlwaysNaN(TwoMoons):
    def simulate(self, theta, rng, context=None):
        return {"x": np.full((len(theta), 2), np.nan)}


class Short(TwoMoons):
    def simulate(self, theta, rng, context=None):
        return {"x": np.zeros((len(theta) - 1, 2))}


@pytest.mark.parametrize(
    ("simulator", "error", "match"),
    [
        (
            AlwaysRaises(),
            SimulatorError,
            r"none of the first 100 simulations succeeded; .* ZeroDivisionError: never",
        ),
        (
            AlwaysNaN(),
            SimulatorError,
            r"none of the 100 simulations is usable \(100 invalid; the first: not finite: x\)",
        ),
        (Short(), ContractError, "one row of `x` for each"),
    ],
)
def test_useless_simulators_are_told(tmp_path: Path, simulator: TwoMoons, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        simulate(simulator, 100, tmp_path / "s.zarr")


def test_a_broken_contract_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ContractError):
        simulate(Short(), 100, tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


def test_processes_say_what_cannot_be_sent(tmp_path: Path) -> None:
    class Local(TwoMoons):
        pass

    with warnings.catch_warnings(), pytest.raises(SimulatorError, match="cannot be sent to worker processes"):
        simulate(Local(), 100, tmp_path / "s.zarr", executor=Processes(1))

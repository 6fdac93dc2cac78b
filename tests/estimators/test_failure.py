"""A loss that is no number: the batch is kept, its rows are named, the reason is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.data.batch import Batch
from simfer.data.errors import TrainingError
from simfer.estimators.npe import NPE
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=1, hidden=(8,)), embedding=EmbeddingSettings(kind="none")
)
TRAINING = TrainingSettings(epochs=2, batch_size=50)


@pytest.fixture
def pairs(line, rng):
    theta = line.prior.sample(400, rng)
    return theta, line.simulate(theta, rng)["x"]


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of rows with x beyond 100 is no number, as if a network had overflowed on them."""
    loss = NPE.loss

    def overflowing(self: NPE, batch: Batch) -> torch.Tensor:
        return loss(self, batch) + torch.where(batch.x["x"].abs().amax(1) > 100, torch.inf, 0.0)

    monkeypatch.setattr(NPE, "loss", overflowing)


def kept(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    (file,) = folder.glob("batch-*.npz")
    with np.load(file) as arrays:
        return file, dict(arrays)


@pytest.mark.usefixtures("spoilt")
def test_the_row_is_named_and_its_batch_is_kept(line, pairs, tmp_path: Path) -> None:
    theta, x = pairs
    x[17] = 1e7
    with pytest.raises(
        TrainingError, match=r"became inf in epoch 0, step \d, in row 17: `x` reaches 1e\+07 .*arcsinh"
    ) as e:
        simfer.train(theta, x, line.prior, estimator=ESTIMATOR, training=TRAINING, folder=tmp_path)
    file, arrays = kept(tmp_path)
    assert str(file) in str(e.value)
    assert set(arrays) == {"theta", "x_x", "loss", "row"}
    np.testing.assert_array_equal(arrays["theta"], theta[arrays["row"]])
    np.testing.assert_array_equal(arrays["x_x"], x[arrays["row"]].astype(np.float32))
    assert arrays["row"][~np.isfinite(arrays["loss"])].tolist() == [17]


@pytest.mark.usefixtures("spoilt")
def test_rows_of_a_store_have_its_numbers(line, tmp_path: Path) -> None:
    class Rare(type(line)):
        def simulate(self, theta, rng, context=None):
            x = super().simulate(theta, rng)["x"]
            return {"x": np.where(theta[:, :1] > 2, 1e7, x)}

    store = simfer.simulate(Rare(), 1000, tmp_path / "line.zarr")
    with pytest.raises(TrainingError, match="`x` reaches"):
        simfer.train(store, rows=slice(300, None), estimator=ESTIMATOR, training=TRAINING, folder=tmp_path)
    _, arrays = kept(tmp_path)
    np.testing.assert_array_equal(store.read()[0][arrays["row"]], arrays["theta"])
    assert arrays["row"].min() >= 300


def test_weights_that_are_no_numbers_are_told_from_bad_rows(line, pairs, tmp_path: Path) -> None:
    wild = TrainingSettings(epochs=5, batch_size=50, learning_rate=1e30, warmup=0.0, clip=1e30)
    with pytest.raises(TrainingError, match="all rows of the batch: the network gives no row a number any more"):
        simfer.train(*pairs, line.prior, estimator=ESTIMATOR, training=wild, folder=tmp_path)
    assert not np.isfinite(kept(tmp_path)[1]["loss"]).any()


@pytest.mark.usefixtures("spoilt")
def test_without_a_folder_the_message_says_how_to_keep_the_batch(line, pairs) -> None:
    theta, x = pairs
    x[[3, 4]] = 1e7
    with pytest.raises(TrainingError, match="Give `folder` to have the batch saved"):
        simfer.train(theta, x, line.prior, estimator=ESTIMATOR, training=TRAINING)


@pytest.mark.usefixtures("spoilt")
def test_a_validation_loss_that_is_no_number_is_not_the_best(line, pairs) -> None:
    theta, x = pairs
    x[-1] = 1e7
    model = simfer.train(theta, x, line.prior, estimator=ESTIMATOR, training=TRAINING)
    assert model.facts["loss"]["validation"] == [np.inf, np.inf]

"""What `auto` means is a function of the number of rows; numbers that are given stay."""

from __future__ import annotations

import pytest

import simfer
from simfer.estimators.schedule import budget
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings

AUTO = TrainingSettings()


def test_given_numbers_stay() -> None:
    found = budget(TrainingSettings(epochs=7, batch_size=33, learning_rate=0.5), 10**6)
    assert (found.epochs, found.batch_size, found.learning_rate) == (7, 33, 0.5)
    assert budget(TrainingSettings(epochs="auto", batch_size=33), 10**6).batch_size == 33


def test_more_rows_have_larger_batches_more_steps_and_fewer_epochs() -> None:
    rows = [10**n for n in range(2, 8)]
    found = [budget(AUTO, n) for n in rows]
    steps = [b.epochs * (n // b.batch_size) for b, n in zip(found, rows, strict=True)]
    assert [b.batch_size for b in found] == sorted(b.batch_size for b in found)
    assert [b.learning_rate for b in found] == sorted(b.learning_rate for b in found)
    assert [b.epochs for b in found] == sorted((b.epochs for b in found), reverse=True)
    assert steps == sorted(steps)


@pytest.mark.parametrize("rows", [1, 2, 7, 31, 32, 33, 999])
def test_few_rows_have_a_budget(rows: int) -> None:
    found = budget(AUTO, rows)
    assert found.epochs >= 1
    assert found.batch_size >= 1
    assert 0 < found.learning_rate < 1


@pytest.mark.slow
def test_the_facts_say_what_auto_was_and_a_resumed_training_has_the_same(line, rng, tmp_path) -> None:
    theta = line.prior.sample(400, rng)
    settings = EstimatorSettings(
        flow=FlowSettings(kind="maf", transforms=1, hidden=(8,)), embedding=EmbeddingSettings(kind="none")
    )

    def stop(epoch: int, train_loss: float, val_loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    arguments = {"x": line.simulate(theta, rng)["x"], "prior": line.prior, "estimator": settings, "training": AUTO}
    whole = simfer.train(theta, **arguments)
    with pytest.raises(KeyboardInterrupt):
        simfer.train(theta, **arguments, folder=tmp_path, on_epoch=stop)
    resumed = simfer.train(theta, **arguments, folder=tmp_path)
    assert resumed.facts["loss"] == whole.facts["loss"]
    assert resumed.facts["training"] == whole.facts["training"]
    assert whole.facts["training"]["batch_size"] == budget(AUTO, 360).batch_size
    assert len(whole.facts["loss"]["train"]) <= budget(AUTO, 360).epochs

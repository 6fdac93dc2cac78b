"""What was trained on a GPU is the same everywhere: over every method and density."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as D

import simfer
from simfer.data.loaders import as_batch
from simfer.estimators.hardware import Hardware
from simfer.estimators.model import Model, load_model
from simfer.estimators.precision import full_precision
from simfer.estimators.robust.information import fisher_trace
from simfer.estimators.settings import (
    EmbeddingSettings,
    EstimatorSettings,
    FieldSettings,
    FisherSettings,
    FlowSettings,
    TradesSettings,
    TrainingSettings,
)
from simfer.simulators.prior import Prior

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SMALL = EmbeddingSettings(features=4, hidden=(16,))
IMAGES = EmbeddingSettings(kind="cnn2d", features=8, channels=(4, 8), hidden=(16,))
FLOWS = {
    kind: EstimatorSettings(flow=FlowSettings(kind=kind, transforms=4, hidden=(16, 16)), embedding=SMALL)
    for kind in ("nsf", "maf", "coupling", "realnvp", "cnf", "gmm")
}
DIRECT = FLOWS | {
    "fmpe": EstimatorSettings(method="fmpe", field=FieldSettings(hidden=32, blocks=2), embedding=SMALL),
    "ensemble": EstimatorSettings(flow=FlowSettings(transforms=1, hidden=(16,)), embedding=SMALL, ensemble=3),
}
CHAINS = {
    "nle": EstimatorSettings(method="nle", flow=FlowSettings(kind="maf", transforms=2, hidden=(16,))),
    "nre": EstimatorSettings(method="nre", embedding=SMALL),
}
PRIOR = Prior({"a": D.Uniform(-1.0, 1.0), "b": D.Normal(0.0, 1.0)})
GPU = Hardware(accelerator="gpu", devices=1)


def simulated(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    theta = PRIOR.sample(rows, rng)
    return theta, (theta + 0.3 * rng.standard_normal(theta.shape)).astype(np.float32)


def trained(settings: EstimatorSettings, *, folder: Path | None = None, epochs: int = 3, rows: int = 2000) -> Model:
    theta, x = simulated(rows)
    training = TrainingSettings(epochs=epochs, batch_size=100, learning_rate=3e-3)
    return simfer.train(theta, x, PRIOR, estimator=settings, training=training, hardware=GPU, folder=folder)


@needs_gpu
@pytest.mark.parametrize("name", DIRECT | CHAINS)
def test_log_prob_is_that_of_the_cpu(name: str, tmp_path: Path) -> None:
    theta, x = simulated(50)
    trained((DIRECT | CHAINS)[name]).save(tmp_path / "model")
    here, there = (load_model(tmp_path / "model", device) for device in ("cpu", "cuda"))
    of = [model.posterior.log_prob_batched(torch.from_numpy(theta)[None], x).cpu() for model in (here, there)]
    torch.testing.assert_close(*of, atol=2e-3, rtol=1e-3)


@needs_gpu
@pytest.mark.parametrize("name", DIRECT)
def test_draws_on_the_gpu_follow_its_log_prob(name: str) -> None:
    _, x = simulated(5)
    posterior = trained(DIRECT[name]).to("cuda").posterior
    draws, log_prob = posterior.sample_with_log_prob((500,), x, seed=1)
    assert draws.device.type == "cuda"
    assert PRIOR.contains(draws.cpu()).all()
    torch.testing.assert_close(posterior.log_prob_batched(draws, x), log_prob, atol=2e-3, rtol=1e-3)


@needs_gpu
@pytest.mark.parametrize("name", CHAINS)
def test_chains_run_on_the_gpu(name: str) -> None:
    _, x = simulated(2)
    draws = trained(CHAINS[name]).to("cuda").posterior.sample_batched((500,), x, seed=1)
    assert draws.device.type == "cuda"
    assert draws.std(0).gt(0).all()


@needs_gpu
def test_resumed_equals_undisturbed(tmp_path: Path) -> None:
    def interrupt(epoch: int, train_loss: float, val_loss: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    theta, x = simulated(2000)
    training = TrainingSettings(epochs=4, batch_size=100, learning_rate=3e-3)
    arguments = {"estimator": FLOWS["nsf"], "training": training, "hardware": GPU}
    with pytest.raises(KeyboardInterrupt):
        simfer.train(theta, x, PRIOR, folder=tmp_path, on_epoch=interrupt, **arguments)
    resumed = simfer.train(theta, x, PRIOR, folder=tmp_path, **arguments)
    whole = simfer.train(theta, x, PRIOR, **arguments)
    assert resumed.facts["loss"]["validation"] == pytest.approx(whole.facts["loss"]["validation"], abs=1e-3)


@needs_gpu
def test_bfloat16_is_of_the_embedding_alone() -> None:
    rng = np.random.default_rng(0)
    theta = PRIOR.sample(2000, rng)
    x = (theta[:, :1, None] + theta[:, 1:, None] + 0.3 * rng.standard_normal((2000, 8, 8))).astype(np.float32)
    settings = EstimatorSettings(flow=FlowSettings(transforms=2, hidden=(16, 16)), embedding=IMAGES)
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        model = simfer.train(
            theta,
            x,
            PRIOR,
            estimator=settings,
            training=TrainingSettings(epochs=3, batch_size=100, learning_rate=3e-3),
            hardware=Hardware(accelerator="gpu", devices=1, precision=precision),
        )
        assert {weights.dtype for weights in model.estimator.parameters()} == {torch.float32}
        losses[precision] = model.facts["loss"]["validation"][-1]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], abs=0.1)


@needs_gpu
@pytest.mark.parametrize("name", ["maf", "gmm", "ensemble"])
def test_robust_training_lowers_the_information(name: str) -> None:
    theta, x = simulated(2000)
    traces = []
    for robust in ({}, {"fisher": FisherSettings(beta=0.1, ema=0.15)}, {"trades": TradesSettings(weight=1.0, steps=3)}):
        training = TrainingSettings(epochs=10, batch_size=100, learning_rate=3e-3, **robust)
        model = simfer.train(theta, x, PRIOR, estimator=DIRECT[name], training=training, hardware=GPU)
        traces.append(float(fisher_trace(model.to("cuda").posterior, x[:100], draws=50).mean()))
    assert max(traces[1:]) < traces[0]


@needs_gpu
@pytest.mark.parametrize("name", DIRECT)
def test_attacks_on_the_gpu_are_as_strong(name: str, tmp_path: Path) -> None:
    theta, x = simulated(40)
    trained(DIRECT[name]).save(tmp_path / "model")
    here, there = (load_model(tmp_path / "model", device).posterior for device in ("cpu", "cuda"))
    found = [simfer.attack(posterior, x, 0.3, theta=theta, steps=50).median() for posterior in (here, there)]
    assert found[1] == pytest.approx(found[0], rel=0.2)


@pytest.mark.parametrize("name", FLOWS | CHAINS)
def test_density_stays_in_float32(name: str) -> None:
    """Under autocast, which no GPU is needed for, only what the embedding gives is rounded."""
    theta, x = simulated(200)
    settings = (FLOWS | CHAINS)[name]
    training = TrainingSettings(epochs=1, batch_size=100)
    model = simfer.train(
        theta,
        x,
        PRIOR,
        estimator=settings.model_copy(update={"embedding": EmbeddingSettings(kind="none")}),
        training=training,
    )
    estimator, batch = model.estimator.eval(), as_batch(theta, {"x": x})
    with torch.no_grad():
        plain = estimator.loss(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = estimator.loss(batch)
    torch.testing.assert_close(mixed, plain, atol=1e-6, rtol=1e-6)


def test_full_precision_ends_autocast() -> None:
    weights = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (weights @ weights).dtype == torch.bfloat16
        with full_precision(weights):
            assert (weights @ weights).dtype == torch.float32

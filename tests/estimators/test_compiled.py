"""Compiled training equals uncompiled, and whatever goes wrong with compiling stops nothing."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.data.batch import Batch
from simfer.data.loaders import as_batch
from simfer.estimators import compiled, tuning
from simfer.estimators.compiled import Compilation, Known
from simfer.estimators.hardware import Hardware
from simfer.estimators.model import build_estimator
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.estimators.trial import Trial

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(transforms=2, hidden=(8,), bins=4), embedding=EmbeddingSettings(features=3, hidden=(8,))
)
TRAINING = TrainingSettings(epochs=3, batch_size=50, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of each test's own, but for those that compile: what one has compiled the next need not."""
    compiles = request.node.get_closest_marker("slow")
    folder = tmp_path_factory.getbasetemp() / "inductor" if compiles else tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def rows(line, rng) -> Batch:
    theta = line.prior.sample(600, rng)
    return as_batch(theta, line.simulate(theta, rng))


@pytest.fixture
def trial(line, rows) -> Trial:
    estimator = build_estimator(line.prior, line.observables, ESTIMATOR)
    estimator.fit_preprocess([rows])
    return Trial(estimator.train(), rows.select(slice(0, 50)))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that takes no time and changes nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_losses_and_gradients_equal_uncompiled(trial, caplog: pytest.LogCaptureFixture, cache: Path) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        trial.estimator.zero_grad()
        trial.estimator.loss(trial.batch).mean().backward()
        return {name: weights.grad.clone() for name, weights in trial.estimator.named_parameters()}

    expected, losses = gradients(), trial.estimator.loss(trial.batch).detach()
    compilation = Compilation("always")
    with caplog.at_level(logging.WARNING):
        compilation.decide(trial, 1)
    assert compilation.active, caplog.text
    torch.testing.assert_close(trial.estimator.loss(trial.batch).detach(), losses, atol=1e-5, rtol=1e-5)
    found = gradients()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    (record,) = (cache / "simfer").glob("*.json")
    assert json.loads(record.read_text())["measured"]
    compilation.undo()
    assert torch.equal(trial.estimator.loss(trial.batch), losses)


@pytest.mark.slow
def test_a_compiled_training_ends_where_an_uncompiled_one_does(line, rows) -> None:
    arguments = {"x": rows.x, "prior": line.prior, "estimator": ESTIMATOR, "training": TRAINING}
    a, b = (
        simfer.train(rows.theta, **arguments, hardware=Hardware(compile=when)).facts["loss"]
        for when in ("always", "never")
    )
    np.testing.assert_allclose(a["train"], b["train"], atol=1e-4)
    np.testing.assert_allclose(a["validation"], b["validation"], atol=1e-4)


@pytest.mark.usefixtures("eager")
def test_patched_transforms_give_the_very_same_results(line, rows) -> None:
    arguments = {"x": rows.x, "prior": line.prior, "estimator": ESTIMATOR, "training": TRAINING}
    a, b = (simfer.train(rows.theta, **arguments, hardware=Hardware(compile=when)) for when in ("always", "never"))
    assert a.facts["loss"] == b.facts["loss"]
    observed = {"x": rows.x["x"][:3]}
    assert torch.equal(
        a.posterior.sample_batched((5,), observed, seed=1), b.posterior.sample_batched((5,), observed, seed=1)
    )


@pytest.mark.usefixtures("eager")
def test_patched_transforms_can_be_sampled(trial) -> None:
    context = trial.estimator.condition(trial.batch.x).detach()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = trial.estimator.density(context).rsample()
    compilation = Compilation("always")
    compilation.decide(trial, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(trial.estimator.density(context).rsample(), expected)
    compilation.undo()


def test_a_compiler_that_fails_is_reported_once(
    line, rows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, **_: object) -> object:
        def run(*arguments: object) -> None:
            raise RuntimeError("no C++ compiler found\nmany more lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING, "simfer"):
        model = simfer.train(
            rows.theta, rows.x, line.prior, estimator=ESTIMATOR, training=TRAINING, hardware=Hardware(compile="always")
        )
    assert len(caplog.messages) == 1
    assert "training goes on without, because `torch.compile` failed: RuntimeError: no C++ compiler" in caplog.text
    assert "many more lines" not in caplog.text
    assert len(model.facts["loss"]["train"]) == 3


def test_a_compiler_that_computes_something_else_is_not_used(
    trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(function: object, **_: object) -> object:
        def run(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
            y, ladj = function(*arguments)
            return y, ladj + 1

        return run

    monkeypatch.setattr(torch, "compile", wrong)
    compilation = Compilation("always")
    with caplog.at_level(logging.WARNING):
        compilation.decide(trial, 1)
    assert not compilation.active
    assert "its loss was" in caplog.text


def test_a_shape_is_compiled_once_its_trainings_have_lost_what_compiling_takes(
    trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "seconds", lambda self, steps=5: 0.01)
    record = compiled._Record(trial)
    assert record.read() is None
    assert compiled._pays(trial, 10**5, record)  # at once
    assert not compiled._pays(trial, 100, record)
    assert record.read() is None  # not worth a look
    rent = 1000 * 0.01 * compiled._SAVED
    trainings = int(compiled._COLD / rent)
    assert [compiled._pays(trial, 1000, record) for _ in range(trainings + 1)] == [False] * trainings + [True]
    assert record.read().lost == trainings * rent


def test_break_even_is_by_what_was_measured(trial) -> None:
    record = compiled._Record(trial)
    record.keep(Known(compiling=4.0, eager=0.01, compiled=0.004, measured=True))
    assert compiled._pays(trial, 700, record)
    assert not compiled._pays(trial, 600, record)
    assert compiled._pays(trial, 600, record)  # the second time
    record.keep(Known(compiling=4.0, eager=0.01, compiled=0.02, measured=True))
    assert not compiled._pays(trial, 10**5, record)
    assert record.read().lost == 0


def test_without_a_compiler_nothing_is_tried(
    trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    with caplog.at_level(logging.INFO, "simfer"):
        Compilation("auto").decide(trial, 10**6)
    assert "no C++ compiler `no-such-compiler`" in caplog.text


def test_a_trial_leaves_no_trace(trial) -> None:
    before = {name: value.clone() for name, value in trial.estimator.state_dict().items()}
    state = torch.get_rng_state()
    trial.seconds()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weights.grad is None for weights in trial.estimator.parameters())
    for name, value in trial.estimator.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_mixtures_have_nothing_to_compile(line, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    mixture = EstimatorSettings(flow=FlowSettings(kind="gmm", components=2, hidden=(8,)))
    estimator = build_estimator(line.prior, line.observables, mixture)
    Compilation("always").decide(Trial(estimator, rows.select(slice(0, 50))), 1)


def test_threads_are_doubled_while_that_pays(trial, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seconds = {1: 1.0, 2: 0.6, 4: 0.59}
    monkeypatch.setattr(Trial, "seconds", lambda self, steps=5: seconds[torch.get_num_threads()])
    try:
        assert tuning.use_best_threads(trial, 8) == 1
        monkeypatch.setattr(tuning, "_LARGE", 1)
        assert tuning.use_best_threads(trial, 8) == torch.get_num_threads() == 2
        assert tuning.use_best_threads(trial, 1) == 1
    finally:
        torch.set_num_threads(before)

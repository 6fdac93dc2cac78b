"""Laws of whole estimators, over every method × density × embedding that go together: a new one is tested by being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import simfer
from simfer.data import registry
from simfer.data.batch import Batch
from simfer.data.loaders import as_batch
from simfer.data.ranges import Ranges
from simfer.data.variables import Variable, Variables
from simfer.estimators.model import Model, build_estimator
from simfer.estimators.settings import (
    EmbeddingSettings,
    EstimatorSettings,
    FieldSettings,
    FlowSettings,
    RatioSettings,
)
from simfer.simulators.prior import Prior

from .test_densities import KINDS as DENSITIES
from .test_embeddings import KINDS as EMBEDDINGS
from .test_embeddings import MASKED, SETS

PRIOR = Prior({"a": torch.distributions.Normal(0.0, 1.0), "b": torch.distributions.Uniform(-1.0, 1.0)})
ROWS = 24
pytestmark = pytest.mark.filterwarnings(
    "ignore::simfer.data.ranges.OutsideTrainingWarning"
)  # of what takes the place of rows
SMALL: dict[str, dict[str, Any]] = {
    "npe": {},
    "nle": {},
    "fmpe": {"field": FieldSettings(hidden=16, blocks=2)},
    "nre": {"ratio": RatioSettings(hidden=(16,))},
    "bnre": {"ratio": RatioSettings(kind="balanced", hidden=(16,))},
}
WITH_DENSITY = ("npe", "nle")
COMBINATIONS = [
    (method, density, embedding)
    for method in SMALL
    for density in (DENSITIES if method in WITH_DENSITY else ["-"])
    for embedding in (["none"] if method == "nle" else EMBEDDINGS)
]
NAMES = [" ".join(combination) for combination in COMBINATIONS]


def small(flow: FlowSettings) -> FlowSettings:
    """What a law needs: a continuous flow is solved in every call."""
    return flow.model_copy(update={"hidden": (8,) * len(flow.hidden)})


def estimator(method: str, density: str, embedding: str, mask: str | None = None) -> Any:
    """Not trained; weights moved away from those that start at zero."""
    chosen, shape = EMBEDDINGS[embedding]
    settings = EstimatorSettings(
        method="nre" if method == "bnre" else method,
        embedding=EmbeddingSettings(**chosen, **({"mask": mask} if mask else {})),
        **({"flow": small(DENSITIES[density])} if density != "-" else {}),
        **SMALL[method],
    )
    observables = Variables([Variable("x", shape), *([Variable(mask)] if mask else [])])
    made = build_estimator(PRIOR, observables, settings, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def batch(shape: tuple[int, ...], mask: str | None = None) -> Batch:
    rng = np.random.default_rng(0)
    theta = PRIOR.sample(ROWS, rng)
    x = {"x": theta[:, :1].reshape(-1, *[1] * len(shape)) + rng.standard_normal((ROWS, *shape))}
    return as_batch(theta, x | ({mask: np.arange(ROWS) % 4 + 1.0} if mask else {}))


def ready(method: str, density: str, embedding: str, mask: str | None = None) -> tuple[Any, Batch]:
    """An estimator whose normalisation is fitted, and rows."""
    made, rows = estimator(method, density, embedding, mask), batch(EMBEDDINGS[embedding][1], mask)
    made.seen = Ranges()
    made.fit_preprocess(made.seen.watch([rows]))
    return made, made.prepare(rows)


def test_every_method_and_density_is_here() -> None:
    assert {"nre" if method == "bnre" else method for method in SMALL} == set(registry.names("estimators"))
    assert set(DENSITIES) == set(FlowSettings.model_fields["kind"].annotation.__args__)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=NAMES)
def test_gradient_of_the_loss_reaches_every_parameter(combination: tuple[str, str, str]) -> None:
    made, rows = ready(*combination)
    made.loss(rows).mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("combination", COMBINATIONS, ids=NAMES)
@torch.no_grad()
def test_save_and_load_change_no_bit(combination: tuple[str, str, str], tmp_path: Path) -> None:
    made, rows = ready(*combination)
    model = Model(made.eval(), PRIOR, {})
    model.save(tmp_path / "model")
    own = {"Means": EMBEDDINGS["own"][0]["kind"]} if combination[2] == "own" else {}
    loaded = simfer.load(tmp_path / "model", modules=own)
    assert loaded.estimator.state_dict().keys() == made.state_dict().keys()
    for name, value in made.state_dict().items():
        assert torch.equal(loaded.estimator.state_dict()[name], value), name
    theta = rows.theta.double()[None]
    first, second = (each.posterior.log_prob_batched(theta, rows.x) for each in (model, loaded))
    assert first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=NAMES)
@torch.no_grad()
def test_rows_do_not_know_each_other(combination: tuple[str, str, str]) -> None:
    made, rows = ready(*combination)
    posterior = Model(made.eval(), PRIOR, {}).posterior
    theta, x = rows.theta.double()[None], rows.x
    some = posterior.log_prob_batched(theta[:, 3:5], {name: values[3:5] for name, values in x.items()})
    torch.testing.assert_close(some, posterior.log_prob_batched(theta, x)[:, 3:5], atol=1e-4, rtol=1e-4)


SET_COMBINATIONS = [c for c in COMBINATIONS if c[2] in SETS]
MASK_COMBINATIONS = [c for c in COMBINATIONS if c[2] in MASKED]


@pytest.mark.parametrize("combination", SET_COMBINATIONS, ids=" ".join)
@torch.no_grad()
def test_order_of_a_sets_members_does_not_matter(combination: tuple[str, str, str]) -> None:
    made, rows = ready(*combination)
    posterior, theta = Model(made.eval(), PRIOR, {}).posterior, rows.theta.double()[None]
    turned = {"x": rows.x["x"].flip(1)}
    torch.testing.assert_close(
        posterior.log_prob_batched(theta, turned), posterior.log_prob_batched(theta, rows.x), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("combination", MASK_COMBINATIONS, ids=" ".join)
@torch.no_grad()
def test_padding_does_not_matter(combination: tuple[str, str, str]) -> None:
    made, rows = ready(*combination, mask="n")
    posterior, theta = Model(made.eval(), PRIOR, {}).posterior, rows.theta.double()[None]
    members = torch.arange(rows.x["x"].shape[1])
    absent = members >= rows.x["n"].long()[:, None]
    absent = absent.reshape(*absent.shape, *[1] * (rows.x["x"].dim() - 2)).expand_as(rows.x["x"])
    assert absent.any()
    padded = {"x": torch.where(absent, 0.7, rows.x["x"]), "n": rows.x["n"]}
    torch.testing.assert_close(
        posterior.log_prob_batched(theta, padded), posterior.log_prob_batched(theta, rows.x), atol=1e-4, rtol=1e-4
    )

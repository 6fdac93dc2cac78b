"""Laws of every conditional density, in float64: a new one is tested by adding a line to KINDS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from simfer.estimators.flows import build_flow, coupling_masks
from simfer.estimators.settings import FlowSettings

KINDS = {
    "nsf": FlowSettings(kind="nsf", transforms=2, hidden=(16, 16)),
    "maf": FlowSettings(kind="maf", transforms=2, hidden=(16, 16)),
    "coupling": FlowSettings(kind="coupling", transforms=4, hidden=(16, 16)),
    "realnvp": FlowSettings(kind="realnvp", transforms=4, hidden=(16, 16)),
    "cnf": FlowSettings(kind="cnf", hidden=(16, 16)),
    "gmm": FlowSettings(kind="gmm", components=3, hidden=(16,)),
}
REVERSIBLE = [name for name in KINDS if name != "gmm"]
CONTEXT = 3


def density(kind: str, features: int = 2, seed: int = 0) -> nn.Module:
    """Not trained, but with weights large enough to be far from a standard normal."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = build_flow(KINDS[kind], features, CONTEXT).double().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.3)
    return flow


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def contexts(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, CONTEXT, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grid(low: float, high: float, count: int, features: int = 2) -> tuple[Tensor, float]:
    """Midpoints of cells, ``(cells, features)``, and the volume of one."""
    width = (high - low) / count
    side = low + width * (torch.arange(count, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(*[side] * features).reshape(-1, features), width**features


@torch.no_grad()
def test_density_integrates_to_one(kind: str) -> None:
    z, volume = grid(-8, 8, 200)
    mass = density(kind)(contexts(1)[0]).log_prob(z).exp().sum().item() * volume
    assert mass == pytest.approx(1.0, abs=2e-3)


@torch.no_grad()
def test_draws_follow_the_density(kind: str) -> None:
    """Counts in the cells of a grid against their mass, by a chi-squared test; cells that expect too few are joined."""
    made = density(kind)(contexts(1)[0])
    fine, cells, per_cell = grid(-6, 6, 120)[0], 12, 10
    mass = made.log_prob(fine).exp().reshape(cells, per_cell, cells, per_cell).sum((1, 3)) * (12 / 120) ** 2
    with torch.random.fork_rng():
        torch.manual_seed(5)
        draws = made.sample((20_000,)).numpy()
    counts = np.histogramdd(draws, bins=[np.linspace(-6, 6, cells + 1)] * 2)[0]
    expected = 20_000 * mass.numpy()
    many = expected > 10
    observed, wanted = counts[many], expected[many]
    assert observed.sum() > 19_000
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


@torch.no_grad()
def test_log_prob_comes_with_draws_and_agrees_for_one_and_many(kind: str) -> None:
    flow, context = density(kind), contexts(4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws, log_prob = flow(context).rsample_and_log_prob((50,))
    assert draws.shape == (50, 4, 2)
    assert log_prob.shape == (50, 4)
    close = {"atol": 1e-3, "rtol": 1e-3} if kind == "cnf" else {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(flow(context).log_prob(draws), log_prob, **close)
    for i in range(4):
        torch.testing.assert_close(flow(context[i]).log_prob(draws[:, i]), flow(context).log_prob(draws)[:, i])
        torch.testing.assert_close(flow(context[i]).log_prob(draws[0, i]), flow(context).log_prob(draws)[0, i])


@pytest.mark.parametrize("kind", REVERSIBLE)
def test_log_prob_is_that_of_a_change_of_variables(kind: str) -> None:
    """log N(start) - log |d end / d start|, the derivative by automatic differentiation of the map from noise to draws."""
    made = density(kind)(contexts(1)[0])
    starts = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def push(start: Tensor) -> Tensor:
        return made._transport(start, forward=True, diverge=False)[0] if kind == "cnf" else made.transform.inv(start)

    for start in starts:
        jacobian = torch.autograd.functional.jacobian(push, start)
        base = -0.5 * start.square().sum() - np.log(2 * np.pi)
        expected = base - torch.linalg.slogdet(jacobian).logabsdet
        assert made.log_prob(push(start)).item() == pytest.approx(expected.item(), abs=1e-3 if kind == "cnf" else 1e-8)


def numeric(f: Any, at: Tensor, step: float = 1e-4) -> Tensor:
    """Central differences of f, whatever its shape, along each entry of ``at``; last axis."""
    steps = step * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(f(at + h) - f(at - h)) / (2 * step) for h in steps], -1)


def test_first_and_second_derivatives_of_log_prob_in_the_context(kind: str) -> None:
    flow, z = density(kind), torch.tensor([0.3, -0.7], dtype=torch.float64)
    context = contexts(1)[0].requires_grad_()

    def log_prob(c: Tensor) -> Tensor:
        return flow(c).log_prob(z)

    def slope(c: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(log_prob, c)

    first, second = slope(context), torch.autograd.functional.hessian(log_prob, context)
    assert second.abs().max() > 1e-3
    torch.testing.assert_close(first, numeric(log_prob, context.detach()), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(second, numeric(slope, context.detach()), atol=1e-6, rtol=1e-5)


def test_first_and_second_derivatives_of_log_prob_in_z(kind: str) -> None:
    made, z = density(kind)(contexts(1)[0]), torch.tensor([0.3, -0.7], dtype=torch.float64)

    def slope(at: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(made.log_prob, at)

    torch.testing.assert_close(slope(z), numeric(made.log_prob, z), atol=1e-6, rtol=1e-5)
    second = torch.autograd.functional.hessian(made.log_prob, z)
    torch.testing.assert_close(second, numeric(slope, z), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", REVERSIBLE)
def test_first_and_second_derivatives_of_draws_in_the_context(kind: str) -> None:
    """The noise fixed. Of a mixture's draws only expectations have derivatives: see test_mixture.py."""
    flow, context = density(kind), contexts(1)[0]

    def value(c: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return flow(c).rsample((5,)).sin().sum()

    def slope(c: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(value, c)

    torch.testing.assert_close(slope(context), numeric(value, context), atol=1e-6, rtol=1e-5)
    second = torch.autograd.functional.hessian(value, context)
    torch.testing.assert_close(second, numeric(slope, context), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("features", [1, 2, 5])
def test_gradient_reaches_every_parameter(kind: str, features: int) -> None:
    flow, context = density(kind, features), contexts(20)
    z = torch.randn(20, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flow(context).log_prob(z).sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_one_parameter_works_too(kind: str) -> None:
    z, volume = grid(-9, 9, 1000, features=1)
    made = density(kind, features=1)(contexts(1)[0])
    assert made.log_prob(z).exp().sum().item() * volume == pytest.approx(1.0, abs=1e-3)
    assert made.sample((7,)).shape == (7, 1)


@pytest.mark.parametrize("features", [2, 3, 5, 8, 10])
def test_coupling_layers_let_every_two_features_see_each_other(features: int) -> None:
    masks = np.array(coupling_masks(features, 2 * max(1, (features - 1).bit_length())))
    assert masks.any(1).all()
    assert not masks.all(1).any()
    meets = (masks[:, :, None] & ~masks[:, None, :]).any(0)
    assert (meets | np.eye(features, dtype=bool)).all()


def test_a_continuous_flow_of_several_widths_is_refused() -> None:
    with pytest.raises(ValueError, match="`hidden` of a cnf must be one width"):
        FlowSettings(kind="cnf", hidden=(16, 32))

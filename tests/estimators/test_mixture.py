"""Mixtures: expectations of their draws have the right derivatives, of Gaussians and of anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import zuko
from scipy import stats
from torch import Tensor
from zuko.distributions import DiagNormal

from simfer.data.errors import ShapeError, UnsupportedError
from simfer.estimators.flows import build_flow
from simfer.estimators.mixture import GaussianMixture, Mixture, strata
from simfer.estimators.settings import FlowSettings

NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))


def gaussians(c: Tensor) -> GaussianMixture:
    """Three overlapping normals in two dimensions, everything a function of c."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        flow = build_flow(FlowSettings(kind="gmm", components=3, hidden=(16,)), 2, 2).double()
    return flow(c)


def of_flows(c: Tensor, log_weights: Tensor) -> Mixture:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        flows = [build_flow(FlowSettings(kind=kind, transforms=2, hidden=(8,)), 2, 2) for kind in ("nsf", "maf", "gmm")]
    return Mixture([flow.double()(c) for flow in flows], log_weights)


def f(z: Tensor) -> Tensor:
    return torch.sin(z[..., 0]) + z[..., 0] * z[..., 1] + 0.5 * z[..., 1] ** 2


def expectation(c: Tensor) -> Tensor:
    """E[f] under `gaussians`, by Gauss-Hermite quadrature over each component."""
    mixture = gaussians(c)
    z = torch.cartesian_prod(NODES, NODES)
    weight = torch.outer(WEIGHTS, WEIGHTS).flatten() / (2 * torch.pi)
    points = mixture.base.loc[:, None] + torch.einsum("kij,nj->kni", mixture.base.scale_tril, z)
    return mixture.logits.softmax(-1) @ (f(points) @ weight)


def derivatives(value: Callable[[Tensor], Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.autograd.functional.jacobian(value, c), torch.autograd.functional.hessian(value, c)


def finite_differences(c: Tensor, step: float = 1e-3) -> tuple[Tensor, Tensor]:
    steps = step * torch.eye(2, dtype=c.dtype)
    first = torch.stack([(expectation(c + h) - expectation(c - h)) / (2 * step) for h in steps])
    second = torch.stack([
        torch.stack([
            (expectation(c + h + k) - expectation(c + h - k) - expectation(c - h + k) + expectation(c - h - k))
            / (4 * step**2)
            for k in steps
        ])
        for h in steps
    ])  # fmt: skip
    return first, second


C = torch.tensor([0.4, -0.8], dtype=torch.float64)


@pytest.mark.parametrize("how", ["rsample", "stratified"])
def test_derivatives_of_expectations_are_those_of_finite_differences(how: str) -> None:
    """First and second; means over batches of draws, within 4.5 standard errors of the mean."""

    def value(c: Tensor) -> Tensor:
        mixture = gaussians(c)
        if how == "rsample":
            return f(mixture.rsample((4000,))).mean()
        draws, log_weights = mixture.stratified((4000,))
        return (log_weights.exp() * f(draws)).sum(-1).mean()

    wanted = finite_differences(C)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = [derivatives(value, C) for _ in range(20)]
    for order in (0, 1):
        batches = torch.stack([pair[order] for pair in found])
        error = batches.std(0) / len(found) ** 0.5
        assert wanted[order].abs().max() > 0.05
        assert ((batches.mean(0) - wanted[order]).abs() < 4.5 * error).all()
        assert (error < 0.05).all()


def test_reparametrised_draws_are_the_draws() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = gaussians(C).sample((100,))
        torch.manual_seed(1)
        moved = gaussians(C.clone().requires_grad_()).rsample((100,))
    assert torch.equal(plain, moved)
    assert moved.requires_grad


def test_draws_keep_their_rosenblatt_transform() -> None:
    """In one dimension: the cdf at the moved draw does not change, so its total derivative vanishes."""
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    base = torch.distributions.MultivariateNormal(
        torch.tensor([[-1.0], [2.0]], dtype=torch.float64), scale_tril=torch.ones(2, 1, 1, dtype=torch.float64)
    )

    def cdf(z: Tensor) -> Tensor:
        return (logits.softmax(-1) * torch.special.ndtr(z - base.loc[:, 0])).sum(-1)

    draws = GaussianMixture(zuko.distributions.Mixture(base, logits)).rsample((50,))
    (slope,) = torch.autograd.grad(cdf(draws).sum(), logits)
    assert slope.abs().max() < 1e-9


def test_a_mixture_of_flows_is_their_sum() -> None:
    log_weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    mixture = of_flows(torch.randn(4, 2, dtype=torch.float64), log_weights)
    z = torch.randn(7, 4, 2, dtype=torch.float64)
    parts = torch.stack([part.log_prob(z).exp() for part in mixture.components], -1)
    torch.testing.assert_close(mixture.log_prob(z).exp(), parts @ log_weights.exp())


@torch.no_grad()
def test_draws_of_a_mixture_of_flows_follow_it_in_every_row() -> None:
    """Kolmogorov-Smirnov of the first coordinate against draws of the components in exact proportion."""
    log_weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        mixture = of_flows(torch.randn(3, 2, dtype=torch.float64), log_weights)
        draws = mixture.sample((4000,))
        wanted = torch.cat([part.sample((n,)) for part, n in zip(mixture.components, (2000, 5000, 3000), strict=True)])
    assert draws.shape == (4000, 3, 2)
    for row in range(3):
        assert stats.ks_2samp(draws[:, row, 0].numpy(), wanted[:, row, 0].numpy()).pvalue > 1e-3


def test_shapes_without_and_with_a_batch() -> None:
    log_weights = torch.zeros(3, dtype=torch.float64)
    assert of_flows(C, log_weights).sample().shape == (2,)
    assert of_flows(C, log_weights).sample((5, 4)).shape == (5, 4, 2)
    draws, log_prob = of_flows(C.expand(6, 2), log_weights).rsample_and_log_prob((5,))
    assert draws.shape == (5, 6, 2)
    assert log_prob.shape == (5, 6)


def test_draws_with_constant_weights_have_the_right_derivatives() -> None:
    """In expectation: those of the stratified draws, which pick nothing."""
    log_weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()

    def slope(picked: bool) -> Tensor:
        c = C.clone().requires_grad_()
        mixture = of_flows(c, log_weights)
        if picked:
            value = f(mixture.rsample((3000,))).mean()
        else:
            draws, own = strata(mixture, (3000,))
            value = (own.exp() * f(draws)).sum(-1).mean()
        return torch.autograd.grad(value, c)[0]

    with torch.random.fork_rng():
        torch.manual_seed(3)
        picked = torch.stack([slope(True) for _ in range(10)])
        wanted = torch.stack([slope(False) for _ in range(10)])
    error = (picked.var(0) + wanted.var(0)).sqrt() / 10**0.5
    assert ((picked.mean(0) - wanted.mean(0)).abs() < 5 * error).all()


def test_mixtures_of_mixtures_are_flattened() -> None:
    outer = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    draws, log_weights = strata(Mixture([gaussians(C), gaussians(-C)], outer), (9,))
    assert draws.shape == (9, 6, 2)
    assert log_weights.shape == (6,)
    torch.testing.assert_close(log_weights.exp().sum(), torch.ones((), dtype=torch.float64))


def test_weights_that_need_gradients_are_refused_by_name() -> None:
    mixture = of_flows(C, torch.zeros(3, dtype=torch.float64, requires_grad=True))
    assert not mixture.has_rsample
    with pytest.raises(UnsupportedError, match="use `stratified`"):
        mixture.rsample((3,))


def test_a_weight_too_few_is_named() -> None:
    normal = DiagNormal(torch.zeros(2), torch.ones(2))
    with pytest.raises(ShapeError, match="one number per component, 2"):
        Mixture([normal, normal], torch.zeros(3))


def test_what_is_no_mixture_has_one_stratum() -> None:
    draws, log_weights = strata(DiagNormal(torch.zeros(3, 2), torch.ones(3, 2)), (5,))
    assert draws.shape == (5, 3, 1, 2)
    assert log_weights.tolist() == [[0.0]] * 3

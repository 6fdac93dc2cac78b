"""Continuous flows: the solver against exact solutions, its order, and the estimate of the divergence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from simfer.estimators.continuous import ContinuousDistribution, ContinuousFlow, VelocityField


class Exact(nn.Module):
    """The field of the straight paths from N(0, I) to N(mean, s² I): its flow and density are known."""

    def __init__(self, mean: float, sd: float, features: int) -> None:
        super().__init__()
        self.mean, self.sd, self.features, self.epsilon, self.context = mean, sd, features, 0.01, nn.Identity()

    def conditions(self, encoded: Tensor, t: Tensor) -> list[Tensor]:
        return [t]

    def at(self, z: Tensor, conditions: list[Tensor]) -> Tensor:
        (t,) = conditions
        variance = (t * self.sd) ** 2 + (1 - t) ** 2
        return self.mean + (t * self.sd**2 - (1 - t)) / variance * (z - t * self.mean)

    def along(self, z: Tensor, conditions: list[Tensor], directions: Tensor) -> tuple[Tensor, Tensor]:
        (t,) = conditions
        slope = (t * self.sd**2 - (1 - t)) / ((t * self.sd) ** 2 + (1 - t) ** 2)
        return self.at(z, conditions), slope * directions.reshape(len(directions), *[1] * (z.dim() - 1), -1).expand(
            -1, *z.shape
        )


def solved(sd: float, steps: int) -> tuple[float, float]:
    """Largest errors of the draws, in units of sd, and of their log density."""
    field, context = Exact(0.7, sd, 3), torch.zeros(40, 1, dtype=torch.float64)
    made = ContinuousDistribution(field, context, steps, torch.eye(3, dtype=torch.float64))
    start = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Normal(torch.tensor(0.7, dtype=torch.float64), sd)
    end = made._transport(start, forward=True, diverge=False)[0]
    error = (end - (0.7 + sd * start)).abs().max() / sd
    return error.item(), (made.log_prob(0.7 + sd * start) - exact.log_prob(0.7 + sd * start).sum(-1)).abs().max().item()


@pytest.mark.parametrize("sd", [1.0, 0.3, 0.1, 0.03])
def test_the_default_number_of_steps_solves_narrow_posteriors(sd: float) -> None:
    draws, log_prob = solved(sd, 16)
    assert draws < 5e-3
    assert log_prob < 1.5e-2


def test_errors_fall_with_the_fourth_power_of_the_step() -> None:
    for sd in (0.3, 0.1):
        coarse, fine = solved(sd, 32), solved(sd, 64)
        assert coarse[0] / fine[0] > 8
        assert coarse[1] / fine[1] > 8


def flow(features: int, probes: int, seed: int = 0) -> ContinuousFlow:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = ContinuousFlow(features, 2, width=16, blocks=2, steps=2, epsilon=1.0, probes=probes).double()
    return made.eval()


def test_as_many_probes_as_features_are_exact() -> None:
    """Against the trace of the Jacobian by reverse-mode differentiation."""
    made, context = flow(4, 20), torch.randn(2, dtype=torch.float64)
    z, t = torch.randn(4, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    distribution = made(context)
    conditions = made.field.conditions(made.field.context(context), t)
    velocity, divergence = distribution._velocity(z, conditions, True)
    jacobian = torch.autograd.functional.jacobian(lambda z: made.field(z, t, context), z)
    torch.testing.assert_close(velocity, made.field(z, t, context))
    torch.testing.assert_close(divergence, jacobian.trace())


@torch.no_grad()
def test_few_probes_estimate_the_divergence_without_bias() -> None:
    """Fresh directions in training: the mean over many densities is the exact log density."""
    few, exact = flow(6, 2), flow(6, 6)
    exact.load_state_dict({k: v for k, v in few.state_dict().items() if k != "count"})
    context, z = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    few.train()
    estimates = torch.stack([few(context).log_prob(z) for _ in range(150)])
    error = estimates.std(0) / 150**0.5
    assert (error > 0).all()
    assert ((estimates.mean(0) - exact(context).log_prob(z)).abs() < 4.5 * error).all()


@torch.no_grad()
def test_few_probes_are_the_same_ones_after_training() -> None:
    made, context, z = flow(6, 2), torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    many = made(context).log_prob(z)
    torch.testing.assert_close(torch.stack([made(context[i]).log_prob(z[i]) for i in range(5)]), many)


@torch.no_grad()
def test_portions_change_nothing() -> None:
    """More draws than are taken at once."""
    made, context = flow(2, 2), torch.randn(3, 2, dtype=torch.float64)
    z = torch.randn(4000, 3, 2, dtype=torch.float64)
    whole = made(context).log_prob(z)
    assert whole.shape == (4000, 3)
    torch.testing.assert_close(made(context).log_prob(z[3990:]), whole[3990:])
    assert made(context).log_prob(torch.zeros(2, dtype=torch.float64)).shape == (3,)


def test_a_field_takes_many_z_for_each_context() -> None:
    field = VelocityField(2, 3, width=8, blocks=2, epsilon=1.0)
    context, z, t = torch.randn(5, 3), torch.randn(4, 5, 2), torch.rand(4, 5, 1)
    together = field(z, t, context)
    alone = torch.stack([field(z[i], t[i], context) for i in range(4)])
    torch.testing.assert_close(together, alone)

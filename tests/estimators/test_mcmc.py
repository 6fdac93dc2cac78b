"""Markov chains against exact targets: moments, quantiles, modes, many observations, and what they say of themselves."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from simfer.data.errors import ShapeError, UnsupportedError
from simfer.data.variables import Variable, Variables
from simfer.diagnostics.suite import check
from simfer.estimators.base import Posterior
from simfer.estimators.convergence import bulk_ess, split_r_hat
from simfer.estimators.importance import refine
from simfer.estimators.mcmc import MCMCPosterior, mcmc_posterior, sbi_chains
from simfer.estimators.settings import EstimatorSettings, SamplerSettings
from simfer.estimators.slices import slice_chains
from simfer.simulators.prior import Prior

NORMAL = Prior({name: torch.distributions.Normal(0.0, 1.0) for name in "ab"})
NOISE = 0.5
SAMPLERS = {"slice": slice_chains, "slice_np_vectorized": sbi_chains}


class Exact(nn.Module):
    """x = theta + noise / √exposure, known exactly; a network of no weights but one."""

    observables = Variables([Variable("x", (2,)), Variable("exposure")])
    settings = EstimatorSettings(method="nle", context=("exposure",))
    validity = None
    normalised = True

    def __init__(self, prior: Prior = NORMAL) -> None:
        super().__init__()
        self.prior, self.weight = prior, nn.Parameter(torch.zeros(()))

    def encode(self, x: dict[str, Tensor]) -> Tensor:
        return torch.cat([x["x"], x["exposure"][:, None]], 1).double()

    def log_factor(self, z: Tensor, prepared: Tensor) -> Tensor:
        theta, sd = self.prior.from_unconstrained(z), NOISE / prepared[..., 2:].sqrt()
        return torch.distributions.Normal(theta, sd).log_prob(prepared[..., :2]).sum(-1)


def given(x: np.ndarray, exposure: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": x, "exposure": np.full(x.shape[:-1], exposure)}


def posterior(**sampler) -> MCMCPosterior:
    return mcmc_posterior(Exact(), NORMAL).with_sampler(SamplerSettings(**sampler))


def exact(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean and sd under N(0, 1) given rows of trials."""
    precision = 1 + len(x) / NOISE**2
    return x.sum(0) / NOISE**2 / precision, precision**-0.5


@pytest.mark.parametrize(
    ("method", "parameters", "correlation"),
    [("slice", 1, 0.0), ("slice", 3, 0.95), ("slice_np_vectorized", 2, 0.3)],  # that goes along coordinates
)
def test_a_normal_target_has_its_moments_and_quantiles(method: str, parameters: int, correlation: float) -> None:
    covariance = correlation + (1 - correlation) * torch.eye(parameters, dtype=torch.float64)
    precision = torch.linalg.inv(covariance)
    torch.manual_seed(1)
    chains = SAMPLERS[method](
        lambda z, which: -0.5 * ((z @ precision) * z).sum(1),
        3 * torch.randn(1, 20, parameters, dtype=torch.float64),
        draws=100,
        warmup=20,
        thin=2,
    )
    draws = chains.states[:, 0]
    assert split_r_hat(draws).max() < 1.1
    ess = bulk_ess(draws)
    flat = draws.flatten(0, 1)
    assert (flat.mean(0).abs() < 4 / ess.sqrt()).all()
    assert ((flat.std(0) - 1).abs() < 4 / ess.sqrt()).all()
    for level in (0.1, 0.9):
        share = (flat < scipy.stats.norm.ppf(level)).double().mean(0)
        assert ((share - level).abs() < 4 * (level * (1 - level) / ess).sqrt()).all()


@pytest.mark.slow
def test_modes_far_apart_have_their_shares() -> None:
    """30 % at -10 and 70 % at 10, of unit width; chains start at both."""

    def log_density(z: Tensor, which: Tensor) -> Tensor:
        left, right = (-0.5 * (z - mode).square().sum(1) for mode in (-10, 10))
        return torch.logaddexp(left + math.log(0.3), right + math.log(0.7))

    torch.manual_seed(2)
    start = 10 * torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(25)[None, :, None].expand(-1, -1, 2)
    chains = slice_chains(log_density, start + torch.randn(1, 50, 2, dtype=torch.float64), draws=100, warmup=20, thin=4)
    right = (chains.states[..., 0] > 0).double()
    assert right[:, 0].mean(0).std() < 0.5  # chains go from one to the other
    assert right.mean() == pytest.approx(0.7, abs=0.07)


def test_every_observation_has_its_own_target() -> None:
    torch.manual_seed(3)
    centres = torch.arange(7, dtype=torch.float64)[:, None] * 5
    chains = slice_chains(
        lambda z, which: -0.5 * (z - centres[which]).square().sum(1),
        torch.randn(7, 10, 2, dtype=torch.float64),
        draws=50,
        warmup=20,
        thin=1,
    )
    assert chains.states.shape == (50, 7, 10, 2)
    assert ((chains.states.mean((0, 2)) - centres).abs() < 0.4).all()
    again = -0.5 * (chains.states - centres[:, None]).square().sum(-1)
    torch.testing.assert_close(chains.log_density, again)


def test_a_time_budget_ends_chains_and_says_so() -> None:
    def slow(z: Tensor, which: Tensor) -> Tensor:
        time.sleep(0.01)
        return -0.5 * z.square().sum(1)

    chains = slice_chains(
        slow, torch.randn(1, 10, 2).double(), draws=10_000, warmup=5, thin=1, deadline=time.monotonic() + 0.5
    )
    assert not chains.complete
    assert 1 <= len(chains.states) < 1000
    assert chains.states.isfinite().all()


def test_draws_that_are_missing_are_repeated() -> None:
    asked = posterior(seconds=1e-6, chains=10)
    assert asked.sample((500,), given(np.zeros(2)), seed=0).shape == (500, 2)
    assert asked.diagnostics is not None
    assert not asked.diagnostics.complete
    assert not asked.diagnostics.trusted


@pytest.mark.parametrize("trials", [1, 10, 100])
def test_many_independent_observations(trials: int) -> None:
    """Draws and densities are those of the conjugate posterior, in quantiles as well."""
    rng = np.random.default_rng(trials)
    x = np.array([0.7, -0.4]) + NOISE * rng.standard_normal((trials, 2))
    mean, sd = exact(x)
    asked = posterior(chains=50, warmup=30, thin=3)
    draws = asked.sample((2000,), given(x), seed=1)
    assert asked.diagnostics.trusted
    for i in range(2):
        assert scipy.stats.kstest(draws[::4, i], "norm", (mean[i], sd)).pvalue > 1e-3
    exact_density = torch.distributions.Normal(torch.from_numpy(mean), sd).log_prob(draws).sum(1)
    constant = asked.log_prob(draws, given(x)) - exact_density
    assert constant.std() < 1e-6


def test_one_axis_more_has_the_trials_of_each_observation() -> None:
    rng = np.random.default_rng(0)
    sets = rng.standard_normal((3, 8, 2))
    asked = posterior(chains=20)
    draws = asked.sample_batched((1000,), given(sets), seed=1)
    assert draws.shape == (1000, 3, 2)
    for i in range(3):
        mean, sd = exact(sets[i])
        assert ((draws[:, i].mean(0) - torch.from_numpy(mean)).abs() < 0.2 * sd).all()
        torch.testing.assert_close(
            asked.log_prob_batched(draws, given(sets))[:, i], asked.log_prob(draws[:, i], given(sets[i]))
        )


def test_context_may_be_one_for_all_trials() -> None:
    x, asked = np.ones((5, 2)), posterior()
    theta = torch.zeros(4, 2)
    torch.testing.assert_close(
        asked.log_prob(theta, {"x": x, "exposure": np.array(3.0)}), asked.log_prob(theta, given(x, 3.0))
    )
    with pytest.raises(ShapeError, match="only context may have one row for all trials"):
        asked.log_prob(theta, {"x": x[0], "exposure": np.full(3, 1.0)})
    with pytest.raises(ShapeError, match=r"must have shape \(2,\)"):
        asked.log_prob(theta, {"x": np.ones((5, 3)), "exposure": np.array(3.0)})


def test_shapes_and_draws_come_with_their_density() -> None:
    asked, x = posterior(), given(np.zeros((3, 2)))
    assert asked.sample((), given(np.zeros(2))).shape == (2,)
    assert asked.sample((3, 2), given(np.zeros(2))).shape == (3, 2, 2)
    draws, density = asked.sample_with_log_prob((40,), x, seed=0)
    torch.testing.assert_close(asked.log_prob_batched(draws, x), density)
    with pytest.raises(ShapeError, match=r"must have shape \(\*sample, 3 observations, 2 parameters\)"):
        asked.log_prob_batched(draws[:, 0], x)
    asked.set_default_x(given(np.ones((4, 2))))
    assert torch.equal(asked.sample((5,), seed=1), asked.sample((5,), given(np.ones((4, 2))), seed=1))


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_seed_fixes_draws_and_leaves_the_global_states(method: str) -> None:
    asked, x = posterior(method=method, chains=4, warmup=2), given(np.zeros(2))
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b = asked.sample((20,), x, seed=3), asked.sample((20,), x, seed=3)
    assert torch.equal(a, b)
    assert not torch.equal(a, asked.sample((20,), x, seed=4))
    assert torch.equal(before, torch.get_rng_state())
    assert (numpys == np.random.get_state()[1]).all()  # noqa: NPY002


def test_another_prior_gives_the_posterior_under_it(caplog: pytest.LogCaptureFixture) -> None:
    narrow = Prior({name: torch.distributions.Normal(1.0, 0.1) for name in "ab"})
    draws = mcmc_posterior(Exact(), narrow).sample((2000,), given(np.zeros(2)), seed=0)
    precision = 100 + 1 / NOISE**2
    np.testing.assert_allclose(draws.mean(0), 100 / precision, atol=0.02)
    assert not caplog.records
    uniform = Prior({name: torch.distributions.Uniform(-1.0, 1.0) for name in "ab"})
    beyond = mcmc_posterior(Exact(uniform), NORMAL)
    assert "no simulations were" in caplog.text
    assert uniform.contains(beyond.sample((500,), given(np.full(2, 3.0)), seed=0)).all()
    assert torch.isinf(beyond.log_prob(torch.tensor([[1.5, 0.0]]), given(np.zeros(2)))).all()
    with pytest.raises(ShapeError, match="must have the parameters a, b"):
        mcmc_posterior(Exact(), Prior({"c": torch.distributions.Normal(0.0, 1.0)}))


class Narrow(Posterior):
    """Not the posterior, but near it."""

    observables, prior = Exact.observables, NORMAL

    def sample_with_log_prob(self, sample_shape, x, *, seed=None):
        normal = torch.distributions.Normal(0.8 * x["x"].double(), 0.5)
        draws = normal.sample(sample_shape)
        return draws, normal.log_prob(draws).sum(-1)

    sample_batched = log_prob_batched = rsample = to = sample_with_log_prob  # type: ignore[assignment]


def test_chains_may_start_from_another_posterior() -> None:
    asked = posterior(warmup=0, chains=50).with_sampler(SamplerSettings(warmup=1, chains=50), Narrow())
    far = np.array([6.0, -6.0])
    mean, sd = exact(far[None])
    draws = asked.sample((2000,), given(far), seed=0)
    assert ((draws.mean(0) - torch.from_numpy(mean)).abs() < 0.15 * sd).all()


@pytest.mark.slow
def test_calibrated_chains_pass_every_check() -> None:
    rng = np.random.default_rng(5)
    theta = rng.standard_normal((200, 2))
    found = check(
        posterior(chains=10, thin=2), theta, given(theta + NOISE * rng.standard_normal(theta.shape)), draws=200
    )
    assert all(result.passed for result in found.values())


def test_chains_that_have_not_mixed_are_flagged() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(100, 4, 3, dtype=torch.float64)
    apart = mixed + torch.arange(4)[:, None]
    wider = mixed * torch.tensor([1.0, 1.0, 1.0, 5.0])[:, None]
    drifting = mixed + torch.linspace(0, 3, 100)[:, None, None]
    assert split_r_hat(mixed).max() < 1.03
    for bad in (apart, wider, drifting):
        assert split_r_hat(bad).min() > 1.1
    assert bulk_ess(apart).max() < 10
    assert split_r_hat(mixed[:3]).isnan().all()


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregressive_chain(memory: float) -> None:
    """(1 - a) / (1 + a) of the draws."""
    torch.manual_seed(1)
    noise = torch.randn(4000, 4, 2, dtype=torch.float64) * (1 - memory**2) ** 0.5
    draws = [noise[0] / (1 - memory**2) ** 0.5]
    for step in noise[1:]:
        draws.append(memory * draws[-1] + step)
    expected = 16_000 * (1 - memory) / (1 + memory)
    assert bulk_ess(torch.stack(draws)).numpy() == pytest.approx(expected, rel=0.25)


def test_x_without_likelihood_is_refused() -> None:
    class Impossible(Exact):
        def log_factor(self, z, prepared):
            return super().log_factor(z, prepared) + torch.nan

    with pytest.raises(UnsupportedError, match="`x` must have a finite likelihood at some of 1000"):
        mcmc_posterior(Impossible(), NORMAL).sample((3,), given(np.zeros(2)))


def test_what_chains_cannot_do_is_refused_by_name() -> None:
    asked = posterior()
    assert not asked.normalised
    with pytest.raises(UnsupportedError, match="draws of `nle` come from Markov chains: use npe"):
        asked.rsample((3,), given(np.zeros(2)))
    with pytest.raises(UnsupportedError, match="must have a normalised `log_prob`"):
        refine(asked, lambda theta, x: np.zeros(len(theta)), given(np.zeros((1, 2))))
    with pytest.raises(ValueError, match="`slice_np_vectorized` cannot be stopped"):
        SamplerSettings(method="slice_np_vectorized", seconds=1.0)

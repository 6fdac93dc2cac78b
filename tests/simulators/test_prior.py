"""Laws of priors: every family is enumerated into each."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.distributions as D
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.utils.user_input_checks import process_prior

from simfer.data.errors import PriorError, ShapeError
from simfer.data.variables import RESERVED, RESERVED_IN_RESULTS
from simfer.simulators.families import FAMILIES, GeneralizedPareto, LogUniform, TruncatedNormal
from simfer.simulators.prior import Prior

EXAMPLES: dict[str, D.Distribution] = {
    "Normal": D.Normal(1.0, 2.0),
    "LogNormal": D.LogNormal(-1.0, 1.0),
    "Uniform": D.Uniform(-2.0, 5.0),
    "LogUniform": LogUniform(1e-3, 10.0),
    "Exponential": D.Exponential(5.0),
    "HalfNormal": D.HalfNormal(2.0),
    "TruncatedNormal": TruncatedNormal(0.4, 0.5, low=0.0),
    "Beta": D.Beta(2.0, 3.0),
    "Cauchy": D.Cauchy(0.0, 1.0),
    "Chi2": D.Chi2(3.0),
    "ContinuousBernoulli": D.ContinuousBernoulli(0.3),
    "FisherSnedecor": D.FisherSnedecor(5.0, 8.0),
    "Gamma": D.Gamma(2.0, 0.5),
    "GeneralizedPareto": GeneralizedPareto(1.0, 2.0, 0.3),
    "Gumbel": D.Gumbel(0.0, 2.0),
    "HalfCauchy": D.HalfCauchy(1.0),
    "InverseGamma": D.InverseGamma(3.0, 1.0),
    "Kumaraswamy": D.Kumaraswamy(2.0, 3.0),
    "Laplace": D.Laplace(1.0, 0.5),
    "Pareto": D.Pareto(1.0, 3.0),
    "RelaxedBernoulli": D.RelaxedBernoulli(torch.tensor(1.5), torch.tensor(0.3)),
    "StudentT": D.StudentT(4.0, 1.0, 2.0),
    "Weibull": D.Weibull(2.0, 1.5),
}
LAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Normal": scipy.stats.norm(1, 2).cdf,
    "LogNormal": scipy.stats.lognorm(1, scale=math.exp(-1)).cdf,
    "Uniform": scipy.stats.uniform(-2, 7).cdf,
    "LogUniform": scipy.stats.loguniform(1e-3, 10).cdf,
    "Exponential": scipy.stats.expon(scale=1 / 5).cdf,
    "HalfNormal": scipy.stats.halfnorm(scale=2).cdf,
    "TruncatedNormal": scipy.stats.truncnorm(-0.8, np.inf, 0.4, 0.5).cdf,
    "Beta": scipy.stats.beta(2, 3).cdf,
    "Cauchy": scipy.stats.cauchy().cdf,
    "Chi2": scipy.stats.chi2(3).cdf,
    "ContinuousBernoulli": scipy.stats.truncexpon(math.log(7 / 3), scale=1 / math.log(7 / 3)).cdf,
    "FisherSnedecor": scipy.stats.f(5, 8).cdf,
    "Gamma": scipy.stats.gamma(2, scale=2).cdf,
    "GeneralizedPareto": scipy.stats.genpareto(0.3, 1, 2).cdf,
    "Gumbel": scipy.stats.gumbel_r(0, 2).cdf,
    "HalfCauchy": scipy.stats.halfcauchy().cdf,
    "InverseGamma": scipy.stats.invgamma(3).cdf,
    "Kumaraswamy": lambda theta: 1 - (1 - theta**2) ** 3,
    "Laplace": scipy.stats.laplace(1, 0.5).cdf,
    "Pareto": scipy.stats.pareto(3).cdf,
    "RelaxedBernoulli": lambda theta: scipy.special.expit(1.5 * scipy.special.logit(theta) - scipy.special.logit(0.3)),
    "StudentT": scipy.stats.t(4, 1, 2).cdf,
    "Weibull": scipy.stats.weibull_min(1.5, scale=2).cdf,
}
EVERY = pytest.mark.parametrize("family", list(FAMILIES))


def one(family: str) -> Prior:
    return Prior({"p": EXAMPLES[family]})


def test_every_family_has_an_example() -> None:
    assert set(EXAMPLES) == set(LAWS) == set(FAMILIES)


def test_every_family_is_documented_with_its_arguments() -> None:
    page = (Path(__file__).parents[2] / "docs" / "priors.md").read_text(encoding="utf-8")
    table = page.split("## One parameter")[1].split("## Several")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:3]]
        for line in table.splitlines()
        if line.startswith("| `") and "`dist`" not in line
    ]
    documented = {name.strip("`"): set(re.findall(r"`(\w+)`", arguments)) for name, arguments in rows}
    assert documented == {name: set(family.arguments) for name, family in FAMILIES.items()}


@EVERY
def test_draws_follow_scipys_law(family: str) -> None:
    theta = one(family).sample(20_000, np.random.default_rng(2))[:, 0]
    assert scipy.stats.kstest(theta, LAWS[family]).pvalue > 1e-3


@EVERY
def test_unconstrained_is_standard_normal_under_the_prior(family: str) -> None:
    """Against the family's own sampler in torch, not ours."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theta = EXAMPLES[family].sample((20_000,)).double()[:, None]
    z = one(family).to_unconstrained(theta)[:, 0].numpy()
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3


@EVERY
def test_bijection_inverts_far_into_both_tails(family: str) -> None:
    prior, z = one(family), torch.linspace(-6, 6, 200, dtype=torch.float64)[:, None]
    theta = prior.from_unconstrained(z)
    assert prior.contains(theta).all()
    assert (theta.diff(dim=0) > 0).all()
    torch.testing.assert_close(prior.to_unconstrained(theta), z, atol=1e-5, rtol=1e-5)


@EVERY
def test_draws_at_absurd_z_stay_strictly_inside(family: str) -> None:
    prior = one(family)
    theta = prior.from_unconstrained(torch.tensor([[-60.0], [60.0]], dtype=torch.float64))
    assert prior.contains(theta).all()
    assert torch.isfinite(prior.log_prob(theta)).all()
    assert torch.isfinite(prior.to_unconstrained(theta)).all()


@EVERY
def test_log_det_is_the_derivative(family: str) -> None:
    prior = one(family)
    theta = prior.from_unconstrained(torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None])
    step = 1e-6 * theta.abs().clamp(min=1e-3)
    slope = (prior.to_unconstrained(theta + step) - prior.to_unconstrained(theta - step)) / (2 * step)
    torch.testing.assert_close(
        prior.log_abs_det(theta, prior.to_unconstrained(theta)), slope[:, 0].log(), atol=1e-4, rtol=1e-4
    )


@EVERY
def test_gradients_of_both_orders(family: str) -> None:
    prior = one(family)
    z = torch.tensor([[-1.3], [0.2], [1.7]], dtype=torch.float64, requires_grad=True)
    theta = prior.from_unconstrained(z).detach().requires_grad_()
    tolerance = {"eps": 1e-6, "atol": 1e-4, "rtol": 1e-3}
    assert torch.autograd.gradcheck(prior.from_unconstrained, z, **tolerance)
    assert torch.autograd.gradcheck(prior.to_unconstrained, theta, **tolerance)
    assert torch.autograd.gradgradcheck(prior.to_unconstrained, theta, **tolerance)


@EVERY
def test_density_integrates_to_one_and_vanishes_outside(family: str) -> None:
    prior = one(family)
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    theta = prior.from_unconstrained(z)
    mass = torch.trapezoid((prior.log_prob(theta) - prior.log_abs_det(theta, z)).exp(), z[:, 0])
    assert mass.item() == pytest.approx(1.0, abs=1e-6)
    support = prior.variables["p"].support
    outside = [bound for bound in (support.low - 1, support.high + 1) if math.isfinite(bound)]
    if outside:
        assert (prior.log_prob(torch.tensor(outside, dtype=torch.float64)[:, None]) == -math.inf).all()


@pytest.mark.parametrize(
    "marginal",
    [
        GeneralizedPareto(0.0, 1.0, -0.5),
        GeneralizedPareto(-2.0, 3.0, 0.0),
        GeneralizedPareto(0.0, 1.0, 1e-9),
        D.GeneralizedPareto(0.0, 1.0, 2.0),
        D.ContinuousBernoulli(0.5),
        D.ContinuousBernoulli(0.999),
        D.Kumaraswamy(0.3, 0.5),
        TruncatedNormal(0.0, 1.0, low=8.0),
    ],
    ids=str,
)
def test_edge_cases_of_families_keep_the_laws(marginal: D.Distribution) -> None:
    prior, z = Prior({"p": marginal}), torch.linspace(-5, 5, 4001, dtype=torch.float64)[:, None]
    theta = prior.from_unconstrained(z)
    torch.testing.assert_close(prior.to_unconstrained(theta), z, atol=1e-4, rtol=1e-4)
    mass = torch.trapezoid((prior.log_prob(theta) - prior.log_abs_det(theta, z)).exp(), z[:, 0])
    assert mass.item() == pytest.approx(1.0, abs=1e-5)
    slope = torch.gradient(theta[:, 0], spacing=(z[:, 0],))[0][1:-1].log()
    torch.testing.assert_close(-prior.log_abs_det(theta, z)[1:-1], slope, atol=1e-3, rtol=1e-3)


def test_one_family_with_and_without_an_upper_end() -> None:
    prior = Prior({"a": GeneralizedPareto(0.0, 1.0, -0.5), "b": GeneralizedPareto(0.0, 1.0, 0.5)})
    assert prior.variables["a"].support.high == 2.0
    assert prior.variables["b"].support.high == math.inf


@EVERY
def test_json_and_pickle_round_trip(family: str) -> None:
    prior = Prior({"p": EXAMPLES[family]}, units={"p": "m"}, labels={"p": "$p$"})
    assert Prior.from_json(json.loads(json.dumps(prior.to_json(), allow_nan=False))) == prior
    assert pickle.loads(pickle.dumps(prior)) == prior


def test_an_override_changes_its_own_parameter_alone() -> None:
    prior = Prior({"a": D.Uniform(0.0, 1.0), "b": D.Uniform(10.0, 11.0)}).replace(
        {"a": {"dist": "Uniform", "low": 2.0, "high": 3.0}}
    )
    theta = prior.sample(100, np.random.default_rng(0))
    assert ((theta > (2.0, 10.0)) & (theta < (3.0, 11.0))).all()
    assert prior.log_prob(torch.from_numpy(theta)).eq(0).all()
    torch.testing.assert_close(prior.from_unconstrained(prior.to_unconstrained(torch.from_numpy(theta))).numpy(), theta)


def test_families_mix_in_the_order_given() -> None:
    names = list(EXAMPLES)
    prior = Prior(EXAMPLES)
    theta = torch.from_numpy(prior.sample(50, np.random.default_rng(0)))
    separate = torch.stack([one(name).log_prob(theta[:, i : i + 1]) for i, name in enumerate(names)], -1).sum(-1)
    assert prior.names == tuple(names)
    torch.testing.assert_close(prior.log_prob(theta), separate)


def test_sampling_is_a_function_of_the_generator() -> None:
    prior = Prior(EXAMPLES)
    before = torch.get_rng_state()
    first, second = (prior.sample(10, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@settings(deadline=None, max_examples=50)
@given(loc=st.floats(-5, 5), scale=st.floats(0.1, 5), low=st.floats(-10, 8), width=st.floats(0.1, 20))
def test_truncated_normal_agrees_with_scipy(loc: float, scale: float, low: float, width: float) -> None:
    high = low + width
    a, b = (low - loc) / scale, (high - loc) / scale
    if scipy.stats.norm.cdf(b) - scipy.stats.norm.cdf(a) < 1e-8:
        return
    law = scipy.stats.truncnorm(a, b, loc, scale)
    theta = np.linspace(low, high, 9)[1:-1]
    ours = TruncatedNormal(loc, scale, low, high).log_prob(torch.from_numpy(theta)).numpy()
    np.testing.assert_allclose(ours, law.logpdf(theta), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("marginal", "match"),
    [
        ({"dist": "Uniform", "low": 2, "high": 1}, "prior of `p`: Uniform cannot be made"),
        ({"dist": "Normal", "loc": 0, "scale": -1}, "prior of `p`: Normal cannot be made"),
        ({"dist": "Normal", "loc": 0, "scale": math.nan}, "prior of `p`: Normal"),
        ({"dist": "Normal", "loc": 0}, "prior of `p`: Normal cannot be made"),
        ({"dist": "Normal", "loc": 0, "sacle": 1}, "Normal has no `sacle`; did you mean `scale`"),
        ({"dist": "Normall", "loc": 0, "scale": 1}, "unknown `dist` 'Normall'; did you mean `Normal`"),
        ({"loc": 0, "scale": 1}, "unknown `dist` None"),
        ({"dist": "Poisson", "rate": 1}, "`Poisson` cannot be used: it is discrete"),
        ({"dist": "TruncatedNormal", "loc": 0, "scale": 1, "low": 3, "high": 2}, "needs low < high; got low=3, high=2"),
        ({"dist": "TruncatedNormal", "loc": 0, "scale": 1, "low": 50}, "has no mass between"),
        (D.VonMises(0.0, 1.0), "`VonMises` cannot be used: it is circular"),
        (D.Normal(torch.zeros(3), 1.0), "must be one number; got a distribution of shape"),
        (3.0, "must be a torch distribution or a mapping"),
    ],
)
def test_impossible_marginals_are_named(marginal: object, match: str) -> None:
    with pytest.raises(PriorError, match=match):
        Prior({"p": marginal})


@pytest.mark.parametrize("name", [*sorted(RESERVED | RESERVED_IN_RESULTS), "two words", "1st", ""])
def test_names_that_stores_and_results_need_are_refused_at_once(name: str) -> None:
    with pytest.raises(
        PriorError, match=rf"^prior of `{name}`: a parameter must be named by an identifier .* otherwise$"
    ):
        Prior({"a": D.Normal(0.0, 1.0), (name,): D.Normal(0.0, 1.0)})


def test_a_keyword_may_name_a_parameter() -> None:
    assert Prior({"lambda": D.Normal(0.0, 1.0)}).variables.names == ("lambda",)


def test_replace_keeps_units_and_refuses_strangers() -> None:
    prior = Prior({"a": D.Normal(0.0, 1.0), "b": D.Normal(0.0, 1.0)}, units={"a": "m"})
    changed = prior.replace({"a": {"dist": "Uniform", "low": 0, "high": 1}})
    assert changed.to_json()["a"] == {"dist": "Uniform", "low": 0.0, "high": 1.0, "units": "m", "label": ""}
    with pytest.raises(PriorError, match="prior of `c`: no such parameter"):
        prior.replace({"c": {"dist": "Uniform", "low": 0, "high": 1}})


def test_wrong_number_of_parameters_is_named() -> None:
    with pytest.raises(ShapeError, match=r"must have 1 parameters \(p\) in its last axis; got shape \(3, 2\)"):
        one("Normal").log_prob(torch.zeros(3, 2))


def test_sbi_takes_the_torch_form() -> None:
    prior = Prior(EXAMPLES)
    processed, size, returns_numpy = process_prior(prior.torch)
    assert (size, returns_numpy) == (len(EXAMPLES), False)
    theta = processed.sample((5,))
    torch.testing.assert_close(processed.log_prob(theta).double(), prior.log_prob(theta), atol=1e-3, rtol=1e-3)

"""Joint normals, and distribution classes of the user's own."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributions as D
from sbi.utils.user_input_checks import process_prior

from simfer.data import registry
from simfer.data.errors import PriorError
from simfer.simulators.prior import Prior

OWN = '''
import math
import torch
from torch.distributions import (
    Categorical, Dirichlet, Distribution, MixtureSameFamily, Normal, Poisson, StudentT, TransformedDistribution
)
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform


class Bumps(MixtureSameFamily):
    """Two bumps, with a cdf but no icdf."""

    def __init__(self, gap):
        components = Normal(torch.stack([-gap, gap]), torch.ones(2, dtype=torch.float64))
        super().__init__(Categorical(torch.ones(2, dtype=torch.float64)), components)


class LogStudent(TransformedDistribution):
    """Positive, far from 1, and without a cdf."""

    def __init__(self, loc, scale):
        super().__init__(StudentT(torch.tensor(5.0).to(loc), loc, scale), ExpTransform())


class Logistic(Distribution):
    """With cdf and icdf, and a tensor of the class's own making."""

    arg_constraints = {"loc": constraints.real}
    support = constraints.real

    def __init__(self, loc):
        self.loc = torch.as_tensor(loc, dtype=torch.float64)
        super().__init__(validate_args=False)

    def sample(self, sample_shape=()):
        return self.icdf(torch.rand(sample_shape, dtype=torch.float64))

    def log_prob(self, value):
        return torch.nn.functional.logsigmoid(value - self.loc) + torch.nn.functional.logsigmoid(self.loc - value)

    def cdf(self, value):
        return torch.sigmoid(value - self.loc)

    def icdf(self, value):
        return self.loc + torch.logit(value)


class Ring(Distribution):
    """Joint: a radius about 1 and an angle that is uniform; in the plane."""

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, width):
        self.width = width
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, sample_shape=()):
        angle = 2 * math.pi * torch.rand(sample_shape, dtype=torch.float64)
        radius = torch.exp(self.width * torch.randn(sample_shape, dtype=torch.float64))
        return radius[..., None] * torch.stack([angle.cos(), angle.sin()], -1)

    def log_prob(self, value):
        radius = value.norm(dim=-1)
        return Normal(0.0, self.width).log_prob(radius.log()) - 2 * radius.log() - math.log(2 * math.pi)


class Rude(Logistic):
    """Draws what it likes."""

    count = 0.0

    def sample(self, sample_shape=()):
        Rude.count += 1
        return super().sample(sample_shape) + Rude.count


class Silent(Distribution):
    """No support."""

    arg_constraints = {}


class Shares(Dirichlet):
    def __init__(self, a):
        super().__init__(a * torch.ones(2, dtype=torch.float64))


class Pairs(Normal):
    def __init__(self, scale):
        super().__init__(torch.zeros(2), scale)


class Counts(Poisson):
    pass


def number(x):
    return 3.0
'''

CORRELATED = {
    "dist": "MultivariateNormal",
    "loc": [1.0, -2.0],
    "covariance_matrix": [[4.0, 1.5], [1.5, 1.0]],
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def assert_laws(prior: Prior) -> None:
    """Round trip, log-determinant by finite differences, total density, and draws that follow it."""
    theta = torch.from_numpy(prior.sample(500, np.random.default_rng(3)))
    z = prior.to_unconstrained(theta)
    torch.testing.assert_close(prior.from_unconstrained(z), theta, atol=1e-8, rtol=1e-8)
    jacobian = torch.autograd.functional.jacobian(lambda t: prior.to_unconstrained(t).sum(0), theta[:20])
    expected = torch.linalg.slogdet(jacobian.permute(1, 0, 2))[1]
    torch.testing.assert_close(prior.log_abs_det(theta[:20], z[:20]), expected, atol=1e-6, rtol=1e-6)
    step = 1e-5 * torch.eye(prior.dim, dtype=torch.float64)[:, None]
    moved = [prior.from_unconstrained(z[:20] + sign * step) for sign in (1, -1)]
    slope = ((moved[0] - moved[1]) / 2e-5).permute(1, 0, 2)
    torch.testing.assert_close(
        -prior.log_abs_det(theta[:20], z[:20]), torch.linalg.slogdet(slope)[1], atol=1e-5, rtol=1e-5
    )
    assert prior.contains(theta).all()
    assert torch.isfinite(prior.log_prob(theta)).all()
    assert Prior.from_json(json.loads(json.dumps(prior.to_json(), allow_nan=False))) == prior
    assert pickle.loads(pickle.dumps(prior)) == prior


@pytest.mark.parametrize("key", ["a, b", ("a", "b")])
def test_joint_normal(key: object) -> None:
    prior = Prior({key: CORRELATED})
    theta = prior.sample(20_000, np.random.default_rng(0))
    law = scipy.stats.multivariate_normal([1, -2], [[4, 1.5], [1.5, 1]])
    assert prior.names == ("a", "b")
    np.testing.assert_allclose(np.cov(theta.T), law.cov, atol=0.1)
    np.testing.assert_allclose(prior.log_prob(torch.from_numpy(theta[:9])), law.logpdf(theta[:9]), rtol=1e-9)
    z = prior.to_unconstrained(torch.from_numpy(theta)).numpy()
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.03
    assert_laws(prior)


@pytest.mark.parametrize("form", ["scale_tril", "precision_matrix"])
def test_joint_normal_by_torchs_other_arguments(form: str) -> None:
    given = D.MultivariateNormal(torch.zeros(2).double(), torch.tensor(CORRELATED["covariance_matrix"]).double())
    prior = Prior({"a, b": {"dist": "MultivariateNormal", "loc": [0, 0], form: getattr(given, form).tolist()}})
    theta = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(theta), given.log_prob(theta))
    torch.testing.assert_close(Prior({"a, b": given}).log_prob(theta), given.log_prob(theta))


def test_joint_and_single_parameters_keep_the_given_order() -> None:
    prior = Prior(
        {"a, b": CORRELATED, "c": D.Uniform(0.0, 1.0)}, order=("a", "c", "b"), units={"b": "m"}, labels={"c": "$c$"}
    )
    assert prior.names == ("a", "c", "b")
    assert list(prior.to_json()) == ["a", "c", "b"]
    theta = prior.sample(5000, np.random.default_rng(0))
    assert np.corrcoef(theta[:, 0], theta[:, 2])[0, 1] == pytest.approx(0.75, abs=0.03)
    assert ((theta[:, 1] > 0) & (theta[:, 1] < 1)).all()
    assert_laws(prior)


def test_draw_gives_the_same_rows_as_named_columns() -> None:
    prior = Prior({"a, b": CORRELATED, "c": D.Cauchy(0.0, 1.0)})
    columns, theta = prior.draw(7, np.random.default_rng(4)), prior.sample(7, np.random.default_rng(4))
    assert list(columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(np.stack(list(columns.values()), axis=1), theta)


def test_override_by_a_joint_keeps_order_units_and_labels() -> None:
    prior = Prior({n: D.Normal(0.0, 1.0) for n in "acb"}, units={"b": "m"}, labels={"a": "$a$"})
    changed = prior.replace({"a, b": CORRELATED})
    assert changed.names == ("a", "c", "b")
    assert (changed.variables["b"].units, changed.variables["a"].label) == ("m", "$a$")
    assert_laws(changed)


def test_override_of_one_of_a_joint_leaves_the_others_their_marginal() -> None:
    covariance = np.array([[4.0, 1.5, 0.2], [1.5, 1.0, 0.1], [0.2, 0.1, 2.0]])
    prior = Prior(
        {"a, b, c": {"dist": "MultivariateNormal", "loc": [1, 2, 3], "covariance_matrix": covariance.tolist()}}
    )
    one = prior.replace({"b": {"dist": "Uniform", "low": 0, "high": 1, "units": "s"}})
    assert one.to_json()["a"]["covariance_matrix"] == [[4.0, 0.2], [0.2, 2.0]]
    assert one.variables["b"].units == "s"
    two = one.replace({"c": {"dist": "Uniform", "low": 0, "high": 1}})
    assert two.to_json()["a"] == {"dist": "Normal", "loc": 1.0, "scale": 2.0, "units": "", "label": ""}
    assert two.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("key", "given", "match"),
    [
        ("a, b", {**CORRELATED, "loc": [0]}, r"prior of `a, b`: .*`loc` must be 2 finite numbers"),
        ("a, b", {**CORRELATED, "covariance_matrix": [[1, 2], [2, 1]]}, "must satisfy PositiveDefinite"),
        ("a, b", {**CORRELATED, "covariance_matrix": [[1, 2]]}, "`covariance_matrix` must be 2 × 2 finite numbers"),
        ("a, b", {**CORRELATED, "covariance_matrix": [[1, "x"], [2, 1]]}, "cannot be made from"),
        ("a, b", {"dist": "MultivariateNormal", "loc": [0, 0]}, "cannot be made from loc"),
        ("a, b", {**CORRELATED, "covariance": 1}, "has no `covariance`; did you mean `covariance_matrix`"),
        ("a, b", {"dist": "Normal", "loc": 0, "scale": 1}, "Normal is of one parameter, and 2 are named"),
        ("a, b", {"dist": "Dirichlet"}, "joint over several parameters is only MultivariateNormal"),
        ("a", CORRELATED, "name them together, as in `a, b"),
        ("a", {"dist": "VonMises", "loc": 0, "concentration": 1}, "it is circular .*: give Uniform between -pi and pi"),
        ("a", {"dist": "NegativeBinomial"}, "it is discrete: give a continuous parameter"),
        ("a", {"dist": "Dirichlet"}, "its numbers sum to one: give all but one as Beta"),
        ("a", {"dist": "Wishart"}, "it is a matrix"),
        ("a", D.Independent(D.Normal(torch.zeros(1), 1.0), 1), "`Independent` cannot be used: .*file.py:Class"),
        ("a", {"dist": "torch.distributions:VonMises", "loc": 0.0, "concentration": 1.0}, "it is circular"),
        ("a", {"dist": "RelaxedBernoulli", "temperature": -1, "probs": 0.5}, "`temperature` must satisfy"),
        ("a", {"dist": "GeneralizedPareto", "loc": 0, "scale": 0, "concentration": 1}, "`scale` must satisfy"),
        ("a, a", CORRELATED, "prior of `a`: named twice"),
    ],
)
def test_impossible_entries_are_named(key: str, given: object, match: str) -> None:
    with pytest.raises(PriorError, match=match):
        Prior({key: given})


def test_a_parameter_in_two_entries_is_named() -> None:
    with pytest.raises(PriorError, match="prior of `b`: named twice"):
        Prior({"a, b": CORRELATED, "b": D.Normal(0.0, 1.0)})


OWN_LAWS = {
    "Bumps": {"gap": 3.0},
    "LogStudent": {"loc": 7.0, "scale": 0.2},
    "Logistic": {"loc": 2.0},
}


@pytest.mark.parametrize("kind", OWN_LAWS)
def test_own_classes_keep_the_laws(kind: str, own: Path) -> None:
    item = {"dist": "own.py:" + kind, **OWN_LAWS[kind]}
    prior = Prior({"p": item, "q": D.Uniform(0.0, 1.0)}, folder=own)
    assert prior.to_json()["p"]["dist"] == f"{own / 'own.py'}:{kind}"
    assert_laws(prior)
    z = torch.linspace(-60, 60, 4001, dtype=torch.float64)[:, None]
    alone = Prior({"p": item}, folder=own)
    theta = alone.from_unconstrained(z)
    assert alone.contains(theta).all()
    density = alone.log_prob(theta) - alone.log_abs_det(theta, z)
    assert torch.trapezoid(density.exp().nan_to_num(0.0), z[:, 0]).item() == pytest.approx(1.0, abs=2e-3)


def test_own_class_with_a_cdf_becomes_standard_normal(own: Path) -> None:
    prior = Prior({"p": {"dist": "own.py:Logistic", "loc": 2.0}}, folder=own)
    theta = scipy.stats.logistic(2.0).rvs(5000, random_state=0)
    z = prior.to_unconstrained(torch.from_numpy(theta)[:, None])[:, 0]
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    assert (
        scipy.stats.kstest(prior.sample(5000, np.random.default_rng(0))[:, 0], scipy.stats.logistic(2.0).cdf).pvalue
        > 1e-3
    )


def test_own_class_without_a_cdf_is_centred_and_scaled(own: Path) -> None:
    """Drawn by torch, about e^7, yet of unit width around 0 where the flow lives."""
    prior = Prior({"p": {"dist": "own.py:LogStudent", "loc": 7.0, "scale": 0.2}}, folder=own)
    theta = prior.sample(5000, np.random.default_rng(0))
    z = prior.to_unconstrained(torch.from_numpy(theta))
    assert scipy.stats.kstest((np.log(theta[:, 0]) - 7) / 0.2, scipy.stats.t(5).cdf).pvalue > 1e-3
    np.testing.assert_allclose(z.quantile(torch.tensor([0.25, 0.5, 0.75]).double()), [-0.67, 0, 0.67], atol=0.1)
    outside = torch.tensor([[-1.0]], dtype=torch.float64)
    assert not prior.contains(outside).any()
    assert prior.log_prob(outside).item() == prior.log_abs_det(outside, z[:1]).item() == -np.inf


def test_own_joint_class(own: Path) -> None:
    prior = Prior({"x, y": {"dist": "own.py:Ring", "width": 0.1}, "c": D.Normal(0.0, 1.0)}, folder=own)
    theta = prior.sample(5000, np.random.default_rng(0))
    assert scipy.stats.kstest(np.log(np.hypot(theta[:, 0], theta[:, 1])) / 0.1, "norm").pvalue > 1e-3
    assert_laws(prior)


def test_sampling_own_classes_is_a_function_of_the_generator(own: Path) -> None:
    prior = Prior({"x, y": {"dist": "own.py:Ring", "width": 0.1}}, folder=own)
    before = torch.get_rng_state()
    first, second, other = (prior.sample(10, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert (first != other).all()
    assert torch.equal(before, torch.get_rng_state())


def test_sbi_takes_own_classes(own: Path) -> None:
    prior = Prior({"x, y": {"dist": "own.py:Ring", "width": 0.5}, "c": D.Exponential(1.0)}, folder=own)
    processed, size, _ = process_prior(prior.torch)
    theta = processed.sample((2000,))
    assert (size, tuple(theta.shape)) == (3, (2000, 3))
    assert scipy.stats.kstest(theta[:, :2].norm(dim=1).log() / 0.5, "norm").pvalue > 1e-3
    torch.testing.assert_close(processed.log_prob(theta).double(), prior.log_prob(theta), atol=1e-2, rtol=1e-2)


def test_reading_back_runs_no_code_unless_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Prior({"p": {"dist": "own.py:Logistic", "loc": 2.0}}, folder=own)
    written = prior.to_json()
    loaded = [name for name in sys.modules if name.startswith("simfer_user_")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(PriorError, match=r"prior of `p`: .*own.py:Logistic is code that is not loaded"):
        Prior.from_json(written)
    assert Prior.from_json(written, run_code=True) == prior
    for name in [name for name in sys.modules if name.startswith("simfer_user_")]:
        monkeypatch.delitem(sys.modules, name)
    registry.resolve("priors", written["p"]["dist"])
    assert Prior.from_json(written) == prior


def test_the_bijection_of_a_written_prior_is_not_computed_anew(own: Path) -> None:
    written = Prior({"p": {"dist": "own.py:Bumps", "gap": 3.0}}, folder=own).to_json()
    written["p"]["fixed"]["spread"] = [5.0]
    read, z = Prior.from_json(written), torch.tensor([[1.0]], dtype=torch.float64)
    assert read.from_unconstrained(z).item() == pytest.approx(5.0 + written["p"]["fixed"]["centre"][0])
    assert Prior.from_json(read.to_json()) == read


def test_editing_an_own_class_makes_another_prior(own: Path) -> None:
    (own / "other.py").write_text(OWN.replace("value - self.loc", "value - 1.0 * self.loc"))
    first, second = (Prior({"p": {"dist": f"{f}.py:Logistic", "loc": 2.0}}, folder=own) for f in ("own", "other"))
    assert first.to_json()["p"]["fixed"] != second.to_json()["p"]["fixed"]


def test_an_object_of_an_own_class_is_described_by_its_arguments(own: Path) -> None:
    kind = registry.resolve("priors", "own.py:Logistic", own)
    prior = Prior({"p": kind(2.0)})
    assert prior.to_json()["p"]["loc"] == 2.0
    assert_laws(prior)


@pytest.mark.parametrize(
    ("key", "item", "match"),
    [
        ("p", {"dist": "own.py:Logistics"}, "has no `Logistics`; did you mean `Logistic`"),
        ("p", {"dist": "none.py:Logistic"}, "prior of `p`: no file"),
        ("p", {"dist": "no_such_module:Logistic"}, "no module `no_such_module`"),
        ("p", {"dist": "own.py:Logistic", "sd": 1.0}, r"Logistic cannot be made from sd = 1.0: .*unexpected keyword"),
        ("p", {"dist": "own.py:number", "x": 1.0}, "must be a torch Distribution; got float"),
        ("p", {"dist": "own.py:Silent"}, "must have a `support`"),
        ("p", {"dist": "own.py:Counts", "rate": 1.0}, "it is discrete"),
        ("p", {"dist": "own.py:Pairs", "scale": 1.0}, r"must be of 1 numbers.*got batch shape \(2,\)"),
        ("p", {"dist": "own.py:Ring", "width": 1.0}, r"event shape \(2,\)"),
        ("p, q", {"dist": "own.py:Shares", "a": 1.0}, "fewer dimensions than parameters: its numbers sum to one"),
        ("p", {"dist": "own.py:Rude", "loc": 0.0}, "must draw from torch's generator alone"),
    ],
)
def test_unusable_own_classes_are_named(key: str, item: dict[str, object], match: str, own: Path) -> None:
    with pytest.raises(PriorError, match=match):
        Prior({key: item}, folder=own)


def test_one_of_an_own_joint_cannot_be_replaced_alone(own: Path) -> None:
    prior = Prior({"x, y": {"dist": "own.py:Ring", "width": 0.5}}, folder=own)
    with pytest.raises(PriorError, match="what it leaves for `y` is not known: give all of `x, y` anew"):
        prior.replace({"x": {"dist": "Uniform", "low": 0, "high": 1}})

"""Distributions of torch that a prior cannot be made of, by name: why, and what to give instead."""

from __future__ import annotations

_DISCRETE = "it is discrete: give a continuous parameter, which the simulator rounds"
_SIMPLEX = (
    "its numbers sum to one: give all but one as Beta parameters, the shares by which the simulator breaks a stick"
)
_MATRIX = "it is a matrix: give its free entries as parameters of their own"
_WRAPPER = "it has no arguments that a file could hold: give a class of your own, `dist: file.py:Class`"
_UNUSABLE = {
    "VonMises": (
        "it is circular and has no bijection to the real line: give Uniform between -pi and pi where the posterior "
        "keeps away from the seam, else two Normal parameters of which the simulator takes the angle"
    ),
    "MultivariateNormal": "it is joint over several parameters: name them together, as in `a, b: {dist: MultivariateNormal}`",
    "LowRankMultivariateNormal": "it is MultivariateNormal with another argument: give that, with `covariance_matrix`",
    **dict.fromkeys(("Dirichlet", "LogisticNormal", "RelaxedOneHotCategorical"), _SIMPLEX),
    **dict.fromkeys(("LKJCholesky", "Wishart"), _MATRIX),
    **dict.fromkeys(("Independent", "MixtureSameFamily", "TransformedDistribution"), _WRAPPER),
    **dict.fromkeys(
        ("Bernoulli", "Binomial", "Categorical", "Geometric", "Multinomial", "NegativeBinomial"), _DISCRETE
    ),
    **dict.fromkeys(("OneHotCategorical", "OneHotCategoricalStraightThrough", "Poisson"), _DISCRETE),
}


def why_not(name: str) -> str | None:
    """Why a torch distribution cannot be a marginal, and what to do; None for a name that means nothing here."""
    return _UNUSABLE.get(name)

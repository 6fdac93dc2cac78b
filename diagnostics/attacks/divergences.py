r"""How far a posterior has moved, as functions of a perturbed observation :math:`\tilde x` that have gradients.

With :math:`q = q(\cdot | x)` and :math:`\tilde q = q(\cdot | \tilde x)`,

.. math:: \mathrm{KL}(\tilde q \| q), \qquad \mathrm{KL}(q \| \tilde q), \qquad \mathrm{MMD}^2(\tilde q, q), \qquad
    -\log \tilde q(\theta_{\mathrm{true}}), \qquad \log \tilde q(\theta_{\mathrm{chosen}}).

Expectations over :math:`\tilde q` are of reparametrised draws (of every component of a mixture, with its weight), those over
q of draws that stay. The gradient of the first goes through the draws alone: that of :math:`\log \tilde q` at given draws is
0 in the mean, and only adds noise (path gradients: Roeder, Wu & Duvenaud 2017, https://arxiv.org/abs/1703.09194). Gloeckler, Deistler & Macke (2023), https://arxiv.org/abs/2305.14984, call the first "reverse" in code
and "forward" in figures: here formulas name them.

A posterior that is known up to a constant, as one of Markov chains, has the second one only, by self-normalised draws of q:
with :math:`w = \log \tilde p(\theta | \tilde x) - \log \tilde p(\theta | x)` it is
:math:`\log \mathbb{E}_q e^w - \mathbb{E}_q w`, which n draws cannot show to be more than about log n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.errors import UnsupportedError
from ...estimators.base import Posterior

Moved = Callable[[dict[str, Tensor]], Float[Tensor, "rows"]]

ATTACKED_CLEAN = "KL(q(.|x~) || q(.|x))"
CLEAN_ATTACKED = "KL(q(.|x) || q(.|x~))"


@runtime_checkable
class Divergence(Protocol):
    """Makes a function of x~ from a posterior and clean observations.

    Attributes:
        formula: What it is, for tables.
    """

    formula: str

    def __call__(self, posterior: Posterior, x: dict[str, Tensor], draws: int) -> Moved: ...


class _AttackedClean:
    formula = ATTACKED_CLEAN

    def __call__(self, posterior: Any, x: dict[str, Tensor], draws: int) -> Moved:
        require_rsample(posterior, self.formula)

        def moved(attacked: dict[str, Tensor]) -> Tensor:
            theta, log_weights = posterior.rsample_stratified((draws,), attacked)
            flat = theta.flatten(0, 1)
            still = {name: values.detach() for name, values in attacked.items()}
            log_q, clean = (posterior.log_prob_batched(flat, given, True) for given in (still, x))
            parts = (log_q - clean).reshape(theta.shape[:-1])
            return (log_weights.exp() * parts).sum(1).mean(0)

        return moved


class _CleanAttacked:
    formula = CLEAN_ATTACKED

    def __call__(self, posterior: Posterior, x: dict[str, Tensor], draws: int) -> Moved:
        theta, log_q = posterior.sample_with_log_prob((draws,), x)

        def moved(attacked: dict[str, Tensor]) -> Tensor:
            change = posterior.log_prob_batched(theta, attacked, True) - log_q
            gain = 0.0 if posterior.normalised else change.logsumexp(0) - math.log(draws)
            return gain - change.mean(0)

        return moved


class _MMD:
    """With a Gaussian kernel of the median distance between clean draws, in the prior's unconstrained space."""

    formula = "MMD²(q(.|x~), q(.|x))"

    def __call__(self, posterior: Any, x: dict[str, Tensor], draws: int) -> Moved:
        require_rsample(posterior, self.formula)
        clean = posterior.prior.to_unconstrained(posterior.sample_batched((draws,), x)).transpose(0, 1)
        apart = torch.cdist(clean, clean).flatten(1).median(1).values.clamp(min=1e-12)[:, None, None]

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp(-0.5 * ((a[:, :, None] - b[:, None]) / apart[..., None]).square().sum(-1))

        def moved(attacked: dict[str, Tensor]) -> Tensor:
            z = posterior.prior.to_unconstrained(posterior.rsample((draws,), attacked)).transpose(0, 1)
            same = [(kernel(p, p).sum((1, 2)) - draws) / (draws * (draws - 1)) for p in (z, clean)]
            return same[0] + same[1] - 2 * kernel(z, clean).mean((1, 2))

        return moved


class Away:
    """-log q(theta | x~): away from the true theta, or from any other.

    Args:
        theta: ``(observation, parameter)``.
    """

    formula = "-log q(theta|x~)"
    sign = -1.0

    def __init__(self, theta: Any) -> None:
        self._theta = torch.as_tensor(theta).double()[None]

    def __call__(self, posterior: Posterior, x: dict[str, Tensor], draws: int) -> Moved:
        return lambda attacked: self.sign * posterior.log_prob_batched(self._theta, attacked, True)[0]


class Toward(Away):
    """log q(theta | x~): toward a theta that is chosen."""

    formula = "log q(theta|x~)"
    sign = 1.0


DIVERGENCES: dict[str, Divergence] = {
    "attacked_clean": _AttackedClean(),
    "clean_attacked": _CleanAttacked(),
    "mmd": _MMD(),
}


def require_rsample(posterior: Posterior, what: str) -> None:
    """Refuse a posterior whose draws have no gradient.

    Raises:
        UnsupportedError: Its draws are those of Markov chains, say.
    """
    if not hasattr(posterior, "rsample_stratified"):
        raise UnsupportedError(
            f"{what} needs draws with gradients, which {type(posterior).__name__} has not: use `divergence: clean_attacked`, "
            "which needs the gradient of a density alone"
        )

r"""Importance refinement: an amortised posterior made exact at one observation by the simulator's likelihood.

.. math:: w_i = \frac{p(x_o | \theta_i)\, p(\theta_i)}{q(\theta_i | x_o)}, \quad \theta_i \sim q(\theta | x_o), \qquad
    \hat Z = \frac1n \sum_i w_i, \qquad \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2} .

Weights are trusted as far as the shape k of the generalised Pareto distribution fitted to their largest
:math:`\min(n / 5, 3 \sqrt n)`; above 0.7 their mean has not converged. Dax et al. (2023), https://arxiv.org/abs/2210.05686;
Vehtari et al. (2024), https://arxiv.org/abs/1507.02646.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from scipy.special import logsumexp

from ..data.errors import UnsupportedError
from ..data.variables import Arrays
from ..simulators.prior import Prior
from .base import Posterior
from .symmetry.assumed import AssumedSymmetry

LARGEST_PARETO_K = 0.7
LEAST_EFFICIENCY = 0.01  # of the network's draws: below, it hardly knows the posterior
LEAST_ESS = 400.0  # below, even a median is uncertain by a twentieth of a standard deviation
_MOST_PROPOSALS = 20  # per draw asked for

LogLikelihood = Callable[[np.ndarray, Arrays], np.ndarray]


@dataclass(frozen=True, slots=True)
class Refined:
    """Weighted draws of one posterior.

    Attributes:
        proposals: Draws of q, or of the proposal that took its place, ``(proposal, parameter)``.
        log_joint: log of p(x | theta) p(theta), ``(proposal,)``.
        log_weights: The same minus log q(theta | x).
        ess: Effective sample size.
        pareto_k: Shape of the weights' tail; above 0.7 nothing here can be trusted.
        log_evidence: log p(x).
        log_evidence_sd: Its standard error.
        likelihoods: How many rows the likelihood was evaluated at, those included that found the proposal.
        method: What the proposals are draws of.
        network_efficiency: ESS per draw of the network alone, where that is not what `efficiency` is of.
        spent: What ran out before the ESS was reached; empty where nothing did.
        assumed: The symmetry that the network was trained with, if one.
    """

    proposals: Float[np.ndarray, "proposal parameter"]
    log_joint: Float[np.ndarray, " proposal"]
    log_weights: Float[np.ndarray, " proposal"]
    ess: float
    pareto_k: float
    log_evidence: float
    log_evidence_sd: float
    likelihoods: int = 0
    method: str = "importance"
    network_efficiency: float | None = None
    spent: str = ""
    assumed: AssumedSymmetry | None = None

    @property
    def efficiency(self) -> float:
        """ESS per proposal: 1 where q is the exact posterior."""
        return self.ess / len(self.log_weights)

    @property
    def refusal(self) -> str:
        """Why these weights cannot be trusted; empty when they can."""
        why = self._distrust
        return "; ".join(part for part in (why, self.spent, self.suspicion) if part) if why else ""

    @property
    def suspicion(self) -> str:
        """What may be wrong with a network that was trained with a symmetry, where few of its draws are worth anything."""
        share = self.efficiency if self.network_efficiency is None else self.network_efficiency
        if self.assumed is None or not (self._distrust or share < LEAST_EFFICIENCY):
            return ""
        return self.assumed.suspicion

    @property
    def _distrust(self) -> str:
        if not math.isfinite(self.log_evidence):
            return "the likelihood is zero at every draw of the network: it has not seen data like this observation"
        if self.pareto_k > LARGEST_PARETO_K:
            return f"the weights' tail is too heavy (Pareto k = {self.pareto_k:.2f}, at most {LARGEST_PARETO_K})"
        if self.ess < LEAST_ESS:
            return f"only {self.ess:.0f} of {len(self.log_weights)} proposals are effective, {LEAST_ESS:.0f} are needed"
        return ""

    def resample(
        self, draws: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "draws parameter"], Float[np.ndarray, " draws"]]:
        """Draws of equal weight by systematic resampling, in random order, and the log posterior density of each."""
        order = rng.permutation(systematic(self.log_weights, draws, rng))
        return self.proposals[order], self.log_joint[order] - self.log_evidence

    def to_json(self) -> dict[str, Any]:
        """The numbers, for ``summary.json``."""
        return {
            "accepted": not self.refusal,
            "method": self.method,
            "likelihoods": self.likelihoods,
            "network_efficiency": self.network_efficiency,
            "refusal": self.refusal,
            "suspicion": self.suspicion,
            "proposals": len(self.log_weights),
            "ess": self.ess,
            "efficiency": self.efficiency,
            "pareto_k": _or_none(self.pareto_k),
            "log_evidence": _or_none(self.log_evidence),
            "log_evidence_sd": _or_none(self.log_evidence_sd),
        }


def refine(
    posterior: Posterior, log_likelihood: LogLikelihood, x: Arrays, *, draws: int = 10_000, seed: int = 0
) -> Refined:
    """Weight draws of ``posterior`` by the exact likelihood until they are worth ``draws`` independent ones, and never fewer than can be trusted.

    Stops before that after twenty proposals per draw; `Refined.refusal` says whether the result can be used.

    Args:
        posterior: Of any estimator with a `log_prob`.
        log_likelihood: A simulator's: ``(theta (rows, parameter), x of one row) → (rows,)``.
        x: One observation.
        draws: Effective sample size to reach, 400 where fewer are asked for.
        seed: Of the proposals.

    Raises:
        UnsupportedError: The log-likelihood is not one finite number or -inf per row; or the posterior's density is
            known up to a constant only.
    """
    if not posterior.normalised:
        raise UnsupportedError(
            "`posterior` must have a normalised `log_prob`, which one by Markov chains has not: use npe"
        )
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    observed = posterior.observables.rows(x)
    draws = max(draws, math.ceil(LEAST_ESS))
    for portion in range(_MOST_PROPOSALS // 2):
        words = np.random.SeedSequence((seed, 7), spawn_key=(portion,)).generate_state(1)
        parts.append(_weighted(posterior, log_likelihood, observed, 2 * draws, int(words[0])))
        log_weights = np.concatenate([part[2] for part in parts])
        if effective(log_weights) >= draws or not np.isfinite(log_weights).any():
            break
    theta, log_joint = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return summarised(theta, log_joint, log_weights, assumed=posterior.assumed)


def _weighted(
    posterior: Posterior, log_likelihood: LogLikelihood, x: Arrays, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Proposals, their log p(x | theta) p(theta), and that minus log q."""
    proposals, log_q = posterior.propose((draws,), x, seed=seed)
    theta = proposals[:, 0].cpu().numpy()
    log_joint = joint(posterior.prior, log_likelihood, theta, x)
    return theta, log_joint, log_joint - log_q[:, 0].cpu().numpy()


def joint(prior: Prior, log_likelihood: LogLikelihood, theta: np.ndarray, x: Arrays) -> np.ndarray:
    """log p(x | theta) p(theta), ``(rows,)``.

    Raises:
        UnsupportedError: The log-likelihood is not one finite number or -inf per row.
    """
    likelihood = np.asarray(log_likelihood(theta, x), dtype=float)
    if likelihood.shape != (len(theta),) or np.isnan(likelihood).any() or np.isposinf(likelihood).any():
        raise UnsupportedError(
            f"`log_likelihood` must give one number below infinity per row of theta; got shape {likelihood.shape}, "
            f"{int(np.isnan(likelihood).sum())} NaN for {len(theta)} rows"
        )
    return likelihood + prior.log_prob(torch.from_numpy(theta)).numpy()


def summarised(theta: np.ndarray, log_joint: np.ndarray, log_weights: np.ndarray, **facts: Any) -> Refined:
    """Weighted draws of one proposal, with what tells whether they can be trusted."""
    rows, ess = len(log_weights), effective(log_weights)
    log_evidence = float(logsumexp(log_weights) - math.log(rows))
    # Var(Z) / Z² of a mean of n weights, written with the effective sample size
    sd = math.sqrt(max(rows / ess - 1, 0.0) / (rows - 1)) if ess and rows > 1 else math.inf
    facts = {"likelihoods": rows, **facts}
    return Refined(theta, log_joint, log_weights, ess, pareto_k(log_weights), log_evidence, sd, **facts)


def pareto_k(log_weights: Float[np.ndarray, " proposal"]) -> float:
    """Shape of the generalised Pareto distribution of the largest weights; infinite when none is positive."""
    finite = np.sort(log_weights[np.isfinite(log_weights)])
    tail = int(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    if len(finite) <= max(tail, 5):
        return math.inf
    excess = np.exp(finite[-tail:] - finite[-1]) - math.exp(finite[-tail - 1] - finite[-1])
    if excess.max() <= 1e-12:  # equal weights: no tail
        return -math.inf
    return float(scipy.stats.genpareto.fit(excess[excess > 0] / excess.max(), floc=0)[0])


def effective(log_weights: Float[np.ndarray, " proposal"]) -> float:
    """Effective sample size; 0 when no weight is positive."""
    if not np.isfinite(log_weights).any():
        return 0.0
    return float(1 / (_normalised(log_weights) ** 2).sum())


def systematic(
    log_weights: Float[np.ndarray, " proposal"], draws: int, rng: np.random.Generator
) -> Int[np.ndarray, " draws"]:
    """Which to take for draws of equal weight, by systematic resampling, in order."""
    edges = np.cumsum(_normalised(log_weights))
    points = (rng.random() + np.arange(draws)) / draws
    chosen = np.searchsorted(edges, points * edges[-1], side="right")
    return np.minimum(chosen, len(edges) - 1)


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

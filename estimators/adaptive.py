r"""Adaptive refinement: where the network's draws alone do not reach the posterior, a better proposal is found first.

A proposal is a mixture of Student's t in the prior's unconstrained space, with a tenth of the network's own draws beside
it, so that weights are bounded wherever the network has mass. It is found in one of two ways:

``adaptive``
    Population Monte Carlo: all draws so far are weighted by the mixture of all proposals they came from,
    :math:`w_i = \pi(z_i) / \sum_s \frac{n_s}{n} q_s(z_i)`, those weights tempered as much as it takes to keep enough of
    them effective, and the next mixture fitted. Cornuet et al. (2012), https://arxiv.org/abs/0907.1254; Cappé et al. (2008),
    https://arxiv.org/abs/0710.4242.
``smc``
    Sequential Monte Carlo from the network to the posterior (`smc`), and the mixture fitted to its particles.

What is handed over are fresh draws of the last proposal alone, weighted as those of `importance` are: adaptation has no part
in their evidence, its error, their effective sample size and their Pareto k, all of which would be biased otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from ..data.variables import Arrays
from .base import Posterior
from .importance import LARGEST_PARETO_K, LEAST_ESS, LogLikelihood, Refined, effective, pareto_k, summarised
from .smc import temper
from .student import StudentMixture, fit_student
from .target import Points, Target, no_nan

RefineMethod = Literal["importance", "adaptive", "smc"]

_NETWORK_SHARE = 0.1
_PORTIONS = 40  # of the budget; one is drawn between two fits
_PORTION = (100, 5000)
_KEPT = 6  # portions that the next proposal is fitted to: older ones are of worse proposals
_FIT_ON = 10_000  # draws at most, those of largest weight
_EFFECTIVE_PER_PARAMETER = 20  # of tempered weights
_SURPLUS = 1.1  # on top of what the efficiency so far promises
_BETTER = 1.1  # an efficiency that has grown by less has not grown
_PATIENCE = 3
_ANOTHER = 0.3  # of the budget, which is enough to adapt once more


@runtime_checkable
class Proposal(Protocol):
    """What rows can be drawn of."""

    def draw(self, target: Target, rows: int, rng: np.random.Generator) -> Points: ...

    def log_prob(self, points: Points) -> np.ndarray:
        """Log density of z."""
        ...


class Network:
    """The network itself."""

    def draw(self, target: Target, rows: int, rng: np.random.Generator) -> Points:
        return target.drawn(rows, int(rng.integers(2**31)))

    def log_prob(self, points: Points) -> np.ndarray:
        return points.log_q


@dataclass(frozen=True, slots=True)
class Defended:
    """A fitted mixture with a tenth of the network's draws.

    Attributes:
        mixture: Of z.
    """

    mixture: StudentMixture

    def draw(self, target: Target, rows: int, rng: np.random.Generator) -> Points:
        own = int(rng.binomial(rows, _NETWORK_SHARE))
        parts = [target.at(self.mixture.sample(rows - own, rng))] if own < rows else []
        return Points.join([*parts, *([target.drawn(own, int(rng.integers(2**31)))] if own else [])])

    def log_prob(self, points: Points) -> np.ndarray:
        fitted = math.log(1 - _NETWORK_SHARE) + self.mixture.log_prob(points.z)
        return np.logaddexp(fitted, math.log(_NETWORK_SHARE) + points.log_q)


@dataclass
class History:
    """All draws so far, and what they are draws of."""

    proposals: list[Proposal] = field(default_factory=list)
    points: list[Points] = field(default_factory=list)

    def add(self, proposal: Proposal, points: Points) -> None:
        self.proposals.append(proposal)
        self.points.append(points)

    def weighted(self) -> tuple[Points, np.ndarray]:
        """The last draws with their log weights under the mixture of all proposals they are of."""
        proposals, points = self.proposals[-_KEPT:], self.points[-_KEPT:]
        everything, counts = Points.join(points), np.array([len(part) for part in points])
        logs = [proposal.log_prob(everything) for proposal in proposals]
        mixed = np.logaddexp.reduce([log + math.log(n / counts.sum()) for log, n in zip(logs, counts, strict=True)])
        return everything, no_nan(everything.log_target - mixed)


def refine_adaptively(
    posterior: Posterior,
    log_likelihood: LogLikelihood,
    x: Arrays,
    *,
    method: RefineMethod = "adaptive",
    ess: int = 10_000,
    likelihoods: int = 200_000,
    seconds: float | None = None,
    seed: int = 0,
) -> Refined:
    """Weighted draws worth ``ess`` independent ones, by a proposal that is adapted until it gives them.

    Args:
        posterior: Of any estimator with a `log_prob`.
        log_likelihood: A simulator's, or a surrogate's: ``(theta (rows, parameter), x of one row) → (rows,)``.
        x: One observation.
        method: How the proposal is found; ``importance`` stays with the network's draws.
        ess: Effective sample size to reach, 400 where less is asked for.
        likelihoods: Rows at which the likelihood may be evaluated, exactly; those of adaptation count.
        seconds: After which no further rows are begun; results then depend on the machine.
        seed: Of all randomness.

    Returns:
        Whatever was reached; `Refined.refusal` says whether it can be used.

    Raises:
        UnsupportedError: The log-likelihood is not one finite number or -inf per row.
    """
    target, rng = Target(posterior, log_likelihood, x, likelihoods, seconds), np.random.default_rng((seed, 10))
    wanted, portion = float(max(ess, LEAST_ESS)), int(np.clip(likelihoods // _PORTIONS, *_PORTION))
    proposal: Proposal = Network()
    found = proposal.draw(target, min(portion, likelihoods), rng)
    log_weights = _log_weights(proposal, found)
    alone = effective(log_weights) / len(found)
    if method == "importance" or _promises(log_weights, wanted, likelihoods):
        found = _drawn(target, proposal, wanted, portion, rng, found, stubborn=method == "importance")
    if method != "importance" and alone:
        proposal, found = _better(target, found, method, wanted, portion, rng)
    facts = {
        "likelihoods": target.spent,
        "method": method,
        "network_efficiency": alone,
        "spent": target.out_of,
        "assumed": posterior.assumed,
    }
    return summarised(found.theta, found.log_joint, _log_weights(proposal, found), **facts)


def _better(
    target: Target, found: Points, method: RefineMethod, ess: float, portion: int, rng: np.random.Generator
) -> tuple[Proposal, Points]:
    """The first proposal whose draws reach the ESS, or the last that could be paid for, with those draws."""
    proposal: Proposal = Network()
    history, first = History([proposal], [found]), True
    while target.left and not _reached(_log_weights(proposal, found), ess):
        tempered = temper(target, rng) if method == "smc" and first else None
        better, first = Defended(tempered) if tempered else _adapted(target, history, ess, portion, rng), False
        if target.left:
            proposal, found = better, _drawn(target, better, ess, portion, rng)
            history.add(proposal, found)
    return proposal, found


def _adapted(target: Target, history: History, ess: float, portion: int, rng: np.random.Generator) -> Defended:
    """The best proposal that half of what is left finds, or the first that promises the ESS with the other half."""
    until, best, stale = target.left // 2, (False, 0.0), 0
    found = _fitted(history, rng)[0]
    while stale < _PATIENCE and target.left > until + portion:
        proposal, power = _fitted(history, rng)
        points = proposal.draw(target, portion, rng)
        history.add(proposal, points)
        log_weights = _log_weights(proposal, points)
        efficiency = effective(log_weights) / portion
        stale = stale + 1 if power == 1 and efficiency < _BETTER * best[1] else 0
        quality = (pareto_k(log_weights) <= LARGEST_PARETO_K, efficiency)
        if quality >= best:
            best, found = quality, proposal
        if _promises(log_weights, _SURPLUS * ess, target.left):
            break
    return found


def _fitted(history: History, rng: np.random.Generator) -> tuple[Defended, float]:
    """A proposal fitted to tempered weights, and the power they were raised to."""
    points, log_weights = history.weighted()
    power = _power(log_weights, float(max(100, _EFFECTIVE_PER_PARAMETER * points.z.shape[1])))
    largest = np.argsort(log_weights)[-_FIT_ON:]
    weights = np.exp(power * (log_weights[largest] - log_weights.max()))
    return Defended(fit_student(points.z[largest], weights, rng)), power


def _power(log_weights: np.ndarray, least: float) -> float:
    """The largest power up to 1 that leaves ``least`` weights effective."""
    finite = log_weights[np.isfinite(log_weights)]
    if effective(finite) >= min(least, len(finite) / 2):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle * finite) >= min(least, len(finite) / 2) else (low, middle)
    return low


def _drawn(
    target: Target,
    proposal: Proposal,
    ess: float,
    portion: int,
    rng: np.random.Generator,
    found: Points | None = None,
    *,
    stubborn: bool = False,
) -> Points:
    """Draws of one proposal until they reach the ESS or nothing is left, or, not ``stubborn``, show that another is due."""
    found = found or proposal.draw(target, min(portion, target.left), rng)
    while target.left:
        log_weights = _log_weights(proposal, found)
        reached = effective(log_weights)
        if reached >= ess or not np.isfinite(log_weights).any():
            break
        if not stubborn and target.left > target.most * _ANOTHER and pareto_k(log_weights) > LARGEST_PARETO_K:
            break
        lacking = math.ceil((_SURPLUS * ess / reached - 1) * len(found))
        more = proposal.draw(target, min(max(lacking, 1), portion, target.left), rng)
        found = Points.join([found, more])
    return found


def _reached(log_weights: np.ndarray, ess: float) -> bool:
    return effective(log_weights) >= ess and pareto_k(log_weights) <= LARGEST_PARETO_K


def _promises(log_weights: np.ndarray, ess: float, rows: int) -> bool:
    """Whether so many rows of the same proposal would reach the ESS."""
    return effective(log_weights) / len(log_weights) * rows >= ess and pareto_k(log_weights) <= LARGEST_PARETO_K


def _log_weights(proposal: Proposal, points: Points) -> np.ndarray:
    return no_nan(points.log_target - proposal.log_prob(points))

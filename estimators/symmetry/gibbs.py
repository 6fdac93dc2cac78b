r"""Gibbs chains over pose proxies: from draws given a proxy to draws given nothing but x.

.. math:: \hat g = g_\theta \varepsilon, \; \varepsilon \sim \kappa; \qquad \theta \sim q(\theta | x, \hat g)

by turns has :math:`p(\theta, \hat g | x)` as its stationary law. A draw outside the prior's support is not taken and the chain
stays: the chain over theta is reversible, so that what remains is the law within the support. All chains of all observations
are stepped at once; the last state of each is kept.

For a normal pose of sd s and a normal kernel of sd k the lag-1 autocorrelation is :math:`\rho = s^2 / (s^2 + k^2)`, and what is
left of the start after n steps :math:`\rho^n`. So ``auto`` measures ρ among the chains and goes on until a hundredth of what the start
was off, in units of the posterior's sd, is left, and until the chains of now and of half as many steps ago look alike
(Kolmogorov-Smirnov).

Of m chains that go on from the same state, each pair has the correlation :math:`\rho^{2 n}` after n steps, and the mean of all the
variance of :math:`1 + (m - 1) \rho^{2 n}` times fewer draws. Dax et al. (ICLR 2022), https://arxiv.org/abs/2111.13139.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import scipy
import torch
from jaxtyping import Float
from torch import Tensor

Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # state → next state, and which chains moved
_LEFT = 0.01  # of the start, in units of the posterior's sd
_FIRST = 6  # steps before anything can be measured
_FAR, _MOST_APART = 10.0, 0.02  # sd from the median, by quartiles; share of chains
_ALIKE = 1e-3  # p-value, over all observations and coordinates
_KIN = 0.1  # that variances of means are larger by, for chains that have parted


@dataclass(frozen=True, slots=True)
class Convergence:
    """How chains fared.

    Attributes:
        iterations: Steps that were made.
        autocorrelation: Of the pose from one step to the next, by coordinate: the mean of all observations.
        needed: Steps until a hundredth of the start is left, by that autocorrelation.
        p_value: That the chains' poses have the same law as half of the steps ago.
        rhat: Of the poses of the second half, the largest of all observations and coordinates (Gelman & Rubin 1992).
        moved: Share of steps that stayed in the prior's support.
        apart: Share of chains that are ten sd or more from the median of their observation, sd as quartiles tell it: modes
            that do not mix, or a start that the network does not find back from.
    """

    iterations: int
    autocorrelation: tuple[float, ...]
    needed: int
    p_value: float
    rhat: float
    moved: float
    apart: float

    @property
    def converged(self) -> bool:
        return self.iterations >= self.needed and self.p_value >= _ALIKE

    @property
    def trusted(self) -> bool:
        """Whether they have converged, and no chain stays apart from the others."""
        return self.converged and self.apart < _MOST_APART

    def steps_to_part(self, many: int) -> int:
        """Until as many chains from one state are worth a tenth fewer at most, by the slowest coordinate.

        Never more than were made: chains that mix so slowly have not converged, which is said.
        """
        rho = min(max(*self.autocorrelation, 1e-6), 1 - 1e-6)
        parted = math.ceil(math.log(max(many - 1, 1e-6) / _KIN) / (-2 * math.log(rho)))
        return min(max(parted, 1), self.iterations)

    def __str__(self) -> str:
        lag = ", ".join(f"{rho:.2f}" for rho in self.autocorrelation)
        kept = f"; {self.apart:.0%} of chains stay apart from the others: give more rows, or refine by the likelihood"
        kept = "" if self.trusted else kept
        kept = (
            kept
            if self.converged
            else "; NOT converged: give a wider kernel, or more `iterations`; test the symmetry (`simfer check-symmetry`)"
        )
        return (
            f"Gibbs chains of {self.iterations} steps ({self.needed} needed; lag-1 autocorrelation {lag}, R-hat {self.rhat:.3f}, "
            f"{self.moved:.0%} of steps within the prior){kept}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "autocorrelation": list(self.autocorrelation), "converged": self.converged}


def run_chains(
    step: Step,
    state: Float[Tensor, "chain observation parameter"],
    coordinates: Callable[[Tensor], Float[Tensor, "chain observation coordinate"]],
    iterations: int | None,
    most: int,
    progress: Callable[[int], None] = lambda steps: None,
) -> tuple[Float[Tensor, "chain observation parameter"], Convergence]:
    """Step chains until they have forgotten where they began.

    Args:
        step: Makes one step of all.
        state: Where they begin.
        coordinates: Of the pose of a state, for the watch over convergence.
        iterations: How many steps; until they have converged when None.
        most: Then.
        progress: Called with the number of steps made.

    Returns:
        The last states, and how the chains fared.
    """
    trace, moved = [coordinates(state)], []
    limit = iterations or most
    while True:
        state, kept = step(state)
        trace.append(coordinates(state))
        moved.append(float(kept.double().mean()))
        progress(1)
        done = len(moved)
        if done >= limit or (iterations is None and done >= _FIRST and done % 2 == 0 and watch(trace, moved).converged):
            return state, watch(trace, moved)


def watch(trace: list[Float[Tensor, "chain observation coordinate"]], moved: list[float]) -> Convergence:
    """How chains fare, from the poses of every step."""
    done, now = len(moved), trace[-1]
    correlation = _correlation(trace[-2], now).mean(0)
    middle, spread = _quartiles(now)
    off = max(1.0, float(((_quartiles(trace[0])[0] - middle).abs() / spread).max()))
    rho = min(float(correlation.max().clamp(min=1e-6)), 1 - 1e-6)
    needed = math.ceil(math.log(_LEFT / off) / math.log(rho))
    second = torch.stack(trace[-max(2, (done + 1) // 2) :])
    return Convergence(
        done,
        tuple(correlation.tolist()),
        max(needed, 1),
        _alike(trace[done // 2], now),
        _rhat(second),
        sum(moved) / done,
        float((((now - middle).abs() > _FAR * spread).any(-1)).double().mean()),
    )


def _correlation(
    before: Float[Tensor, "chain observation coordinate"], after: Float[Tensor, "chain observation coordinate"]
) -> Float[Tensor, "observation coordinate"]:
    """By ranks, as it is of normal variables of that rank correlation: a few chains that are lost far away do not hide how fast the others forget."""
    a, b = (values.argsort(0).argsort(0).double() - (len(values) - 1) / 2 for values in (before, after))
    return 2 * torch.sin(math.pi / 6 * (a * b).sum(0) / a.square().sum(0))


def _quartiles(poses: Float[Tensor, "chain observation coordinate"]) -> tuple[Tensor, Tensor]:
    """Median, and what the quartiles say the sd is, for every observation."""
    low, middle, high = poses.quantile(torch.tensor([0.25, 0.5, 0.75]).to(poses), dim=0)
    return middle, ((high - low) / 1.349).clamp(min=1e-300)


def _alike(before: Tensor, now: Tensor) -> float:
    """The smallest p-value of all observations and coordinates, times their number."""
    pairs = zip(before.flatten(1).T.cpu().numpy(), now.flatten(1).T.cpu().numpy(), strict=True)
    found = [float(scipy.stats.ks_2samp(a, b, method="asymp").pvalue) for a, b in pairs]
    return min(1.0, len(found) * min(found))


def _rhat(trace: Float[Tensor, "step chain observation coordinate"]) -> float:
    steps = len(trace)
    within = trace.var(0).mean(0)
    between = trace.mean(0).var(0)
    return float(((steps - 1) / steps + between / within.clamp(min=1e-300)).sqrt().max())

r"""Posteriors known up to a constant, by Markov chains.

Chains of all observations run at once: chain c belongs to observation c // chains. They start from draws of the prior, or of
a posterior that is given, chosen without replacement with probabilities proportional to
:math:`w = \tilde p(\theta) / q(\theta)` (sampling importance resampling, Rubin 1988; without replacement by the largest
:math:`\log w_i + g_i`, :math:`g_i` Gumbel, Efraimidis & Spirakis 2006), so that no two start together. Then slice sampling:
ours (`slices`) or sbi's, Tejero-Cantero et al. (2020), https://arxiv.org/abs/2007.09114.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.errors import ShapeError, UnsupportedError
from ..simulators.prior import Prior
from .base import Posterior, XLike, seeded
from .convergence import bulk_ess, split_r_hat
from .potential import LikelihoodEstimator, Potential
from .settings import SamplerSettings
from .slices import Chains, LogDensity, slice_chains
from .trials import many_sets, one_set

_MOST_DOUBTFUL = 0.05  # of many observations: the R-hat of short chains scatters
_LEAST_DRAWS = 10  # of a chain: fewer say nothing about it
_MOST_CHAINS, _LEAST_CHAINS = 100, 20
_ENOUGH_DRAWS = 50  # of a chain, before there are more chains

_log = logging.getLogger("simfer.mcmc")


@dataclass(frozen=True, slots=True)
class SamplerReport:
    """What became of the chains.

    Attributes:
        settings: As asked for.
        chains: Per observation.
        draws: Of each chain.
        r_hat: Rank-normalised split R-hat of each parameter; 1 when chains agree, and about √(1 + 2 τ / draws) then.
        ess: Bulk effective sample size of each parameter, of all draws of its observation.
        evaluations: Points at which the potential was evaluated.
        seconds: Spent.
        complete: Whether the time budget sufficed.
    """

    settings: SamplerSettings
    chains: int
    draws: int
    r_hat: Float[Tensor, "observation parameter"]
    ess: Float[Tensor, "observation parameter"]
    evaluations: int
    seconds: float
    complete: bool

    @property
    def limit(self) -> float:
        """R-hat of chains that have mixed stays below: 1.01, and twice what chains of so few draws differ by chance."""
        return math.sqrt(1.02 + 10 / self.draws)

    @property
    def doubtful(self) -> int:
        """Observations of which an R-hat exceeds `limit`, or cannot be told."""
        return int((~(self.r_hat.amax(-1) <= self.limit)).sum())

    @property
    def trusted(self) -> bool:
        """Whether nearly all chains have mixed, within the time budget."""
        return self.complete and self.doubtful <= _MOST_DOUBTFUL * len(self.r_hat)

    def __str__(self) -> str:
        many, total = len(self.r_hat), self.chains * self.draws
        spent = "" if self.complete else "; the time budget was spent before all draws were there"
        doubtful = f"; {self.doubtful} of {many} observations exceed {self.limit:.3f}" if self.doubtful else ""
        return (
            f"{self.settings.method}, {self.chains} chains of {self.draws} draws, {self.seconds:.1f} s: "
            f"R-hat at most {float(self.r_hat.max()):.3f}, effective draws at least {float(self.ess.min()):,.0f} of {total:,}"
            f"{doubtful}{spent}"
        )

    def to_json(self) -> dict[str, Any]:
        """The numbers, for ``summary.json``."""
        return {
            "method": self.settings.method,
            "chains": self.chains,
            "draws_per_chain": self.draws,
            "r_hat": _or_none(float(self.r_hat.max())),
            "r_hat_median": _or_none(float(self.r_hat.amax(-1).median())),
            "ess": _or_none(float(self.ess.min())),
            "ess_median": _or_none(float(self.ess.amin(-1).median())),
            "doubtful": self.doubtful,
            "trusted": self.trusted,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "complete": self.complete,
        }


class MCMCPosterior(Posterior):
    """The posterior of a learned likelihood or ratio under a prior; `log_prob` is known up to a constant per observation.

    Several rows of x are independent observations of one theta in `sample` and `log_prob`, and one observation each in the
    methods named ``*_batched``, as with sbi; there one more axis, ``(observation, trial, *shape)``, has independent ones.
    Context may have one row for all trials.

    Args:
        estimator: Is put into evaluation mode.
        prior: Of theta.
        sampler: Of the chains.
        start: What chains start from; the prior when None.

    Attributes:
        diagnostics: Of the last draws; None before.
    """

    at_once = 250  # enough to keep a network busy
    normalised = False

    def __init__(
        self,
        estimator: LikelihoodEstimator,
        prior: Prior,
        sampler: SamplerSettings | None = None,
        start: Posterior | None = None,
    ) -> None:
        assert isinstance(estimator, nn.Module)
        self.estimator, self.network = estimator, estimator.eval()
        self.prior, self.observables = prior, estimator.observables
        self.imputes = estimator.settings.impute
        self.sampler, self.start = sampler or SamplerSettings(), start
        self.diagnostics: SamplerReport | None = None

    def with_sampler(self, sampler: SamplerSettings, start: Posterior | None = None) -> MCMCPosterior:
        """The same posterior, otherwise sampled.

        Args:
            sampler: Of the chains.
            start: A posterior of the same x, such as one of NPE, from whose draws chains start.
        """
        changed = copy.copy(self)
        changed.sampler, changed.start, changed.diagnostics = sampler, start or self.start, None
        return changed

    def sample_batched(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None, show_progress_bars: bool = False
    ) -> Float[Tensor, "*sample_shape observation parameter"]:
        return self.sample_with_log_prob(sample_shape, x, seed=seed)[0]

    def sample_with_log_prob(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        with torch.no_grad(), seeded(seed):
            trials = self._trials(x)
            potential = self._potential(trials)
            chains = self._run(potential, trials, math.prod(sample_shape))
        z, density = (_taken(values, math.prod(sample_shape)) for values in (chains.states, chains.log_density))
        theta = self.prior.from_unconstrained(z)
        shape = (*sample_shape, potential.observations)
        return theta.reshape(*shape, -1), (density + self.prior.log_abs_det(theta, z)).reshape(shape)

    def log_prob_batched(
        self, theta: Float[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
    ) -> Float[Tensor, "*sample_shape observation"]:
        with torch.set_grad_enabled(track_gradients):
            potential = self._potential(self._trials(x))
            theta = torch.as_tensor(theta).to(self._device).double()
            if theta.shape[-2:] != (potential.observations, self.prior.dim):
                raise ShapeError(
                    f"`theta` must have shape (*sample, {potential.observations} observations, {self.prior.dim} "
                    f"parameters); got {tuple(theta.shape)}"
                )
            return potential.log_prob(theta.reshape(-1, *theta.shape[-2:])).reshape(theta.shape[:-1])

    def rsample(self, sample_shape: Sequence[int], x: XLike) -> Float[Tensor, "*sample_shape observation parameter"]:
        method = self.estimator.settings.method
        raise UnsupportedError(
            f"`rsample` needs a density of theta; draws of `{method}` come from Markov chains: use npe"
        )

    def to(self, device: str | torch.device) -> MCMCPosterior:
        self.network.to(device)
        return self

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _one(self, x: XLike | None) -> dict[str, Tensor]:
        if x is None:
            return super()._one(x)
        return one_set(x, self.observables, self.estimator.settings.context, finite=not self.imputes)

    def _trials(self, x: XLike) -> dict[str, Tensor]:
        sets = many_sets(x, self.observables, self.estimator.settings.context, finite=not self.imputes)
        self._warn_outside({name: values.detach().cpu().flatten(0, 1).numpy() for name, values in sets.items()})
        return {name: values.to(self._device) for name, values in sets.items()}

    def _potential(self, trials: Mapping[str, Tensor]) -> Potential:
        sizes = next(iter(trials.values())).shape[:2]
        prepared = self.estimator.encode({name: values.flatten(0, 1) for name, values in trials.items()})
        return Potential(self.estimator, self.prior, prepared.unflatten(0, sizes))

    def _run(self, potential: Potential, trials: Mapping[str, Tensor], draws: int) -> Chains:
        began, sampler = time.monotonic(), self.sampler
        count = sampler.chains or max(_LEAST_CHAINS, min(_MOST_CHAINS, draws // _ENOUGH_DRAWS))
        start = _chosen(*self._candidates(potential, trials, max(count, sampler.candidates)), count)
        run = slice_chains if sampler.method == "slice" else sbi_chains
        chains = run(
            potential.unconstrained,
            start,
            draws=max(_LEAST_DRAWS, math.ceil(draws / count)),
            warmup=sampler.warmup,
            thin=sampler.thin,
            deadline=began + (sampler.seconds or math.inf),
        )
        by_chain = chains.states.movedim(1, 2)
        self.diagnostics = SamplerReport(
            sampler,
            count,
            len(by_chain),
            split_r_hat(by_chain),
            bulk_ess(by_chain),
            potential.evaluations,
            time.monotonic() - began,
            chains.complete,
        )
        if not self.diagnostics.trusted:
            _log.warning("the chains cannot be trusted as they are: %s", self.diagnostics)
        return chains

    def _candidates(
        self, potential: Potential, trials: Mapping[str, Tensor], many: int
    ) -> tuple[Float[Tensor, "observation candidate parameter"], Float[Tensor, "observation candidate"]]:
        """Points, and log of target over proposal, for each observation."""
        observations = potential.observations
        if self.start is None:
            seed = int(torch.randint(2**62, ()))
            theta = torch.from_numpy(self.prior.sample(many, np.random.default_rng(seed))).to(self._device)
            theta = theta[:, None].expand(-1, observations, -1)
            log_q = self.prior.log_prob(theta)
        else:
            first = {name: values[:, 0] for name, values in trials.items()}
            theta, log_q = (values.to(self._device) for values in self.start.sample_with_log_prob((many,), first))
        z = self.prior.to_unconstrained(theta).transpose(0, 1)
        which = torch.arange(observations, device=z.device).repeat_interleave(many)
        density = potential.unconstrained(z.flatten(0, 1), which).reshape(observations, many)
        weight = density - (log_q - self.prior.log_abs_det(theta, z.transpose(0, 1))).T
        if not weight.isfinite().any(1).all():
            raise UnsupportedError(
                f"`x` must have a finite likelihood at some of {many} candidates; observation "
                f"{int((~weight.isfinite().any(1)).int().argmax())} has none: it may lie where a declared transform has no "
                "value, or the prior where no simulations were"
            )
        return z, weight


def mcmc_posterior(estimator: LikelihoodEstimator, prior: Prior) -> MCMCPosterior:
    """The posterior under any prior of the same parameters; one that reaches beyond the simulations' is cut there.

    Raises:
        ShapeError: Other parameters than those of the simulations.
    """
    if prior.names != estimator.prior.names:
        raise ShapeError(
            f"`prior` must have the parameters {', '.join(estimator.prior.names)} of the simulations; got {prior}"
        )
    if prior != estimator.prior:
        theta = torch.from_numpy(prior.sample(1000, np.random.default_rng(0)))
        beyond = 1 - float(estimator.prior.contains(theta).double().mean())
        if beyond:
            _log.warning("%.1f %% of the new prior lies where no simulations were: it is cut there", 100 * beyond)
    return MCMCPosterior(estimator, prior)


def sbi_chains(
    log_density: LogDensity,
    start: Float[Tensor, "observation chain parameter"],
    *,
    draws: int,
    warmup: int,
    thin: int,
    deadline: float = math.inf,
) -> Chains:
    """`slice_chains` by sbi's sampler, which tunes its brackets for 50 sweeps besides and knows no deadline.

    Raises:
        UnsupportedError: sbi is not installed.
    """
    try:
        from sbi.samplers.mcmc import SliceSamplerVectorized
    except ImportError as error:
        raise UnsupportedError("`slice_np_vectorized` needs sbi: pip install 'simfer[sbi]', or use `slice`") from error
    observations, chains, _ = start.shape
    which = torch.arange(observations, device=start.device).repeat_interleave(chains)

    def of_arrays(points: np.ndarray) -> np.ndarray:
        return log_density(torch.from_numpy(points).to(start.device), which).cpu().numpy()

    before = np.random.get_state()  # noqa: NPY002 - sbi draws from it
    np.random.seed(int(torch.randint(2**32, ())))  # noqa: NPY002
    try:
        sampler = SliceSamplerVectorized(
            of_arrays, start.flatten(0, 1).cpu().numpy(), num_chains=len(which), verbose=False
        )
        states = torch.from_numpy(sampler.run(warmup + draws * thin)).to(start.device)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    kept = states[:, warmup + thin - 1 :: thin].transpose(0, 1)
    densities = torch.stack([log_density(points, which) for points in kept])
    shape = (len(kept), observations, chains)
    return Chains(kept.reshape(*shape, -1), densities.reshape(shape), True)


def _chosen(
    points: Float[Tensor, "observation candidate parameter"],
    log_weight: Float[Tensor, "observation candidate"],
    many: int,
) -> Float[Tensor, "observation chain parameter"]:
    """Without replacement by weight, in random order; where too few are possible, the best again."""
    keys = log_weight - torch.log(-torch.log(torch.rand_like(log_weight)))
    best, index = keys.topk(many, 1)
    index = torch.where(best.isfinite(), index, index[:, :1])
    return points.gather(1, index[..., None].expand(-1, -1, points.shape[-1]))[:, torch.randperm(many)]


def _taken(values: Float[Tensor, "draw observation chain *parameter"], many: int) -> Tensor:
    """The last ``many``, neighbours from different chains, ``(many, observation, *parameter)``; from the start again where too few."""
    flat = values.movedim(2, 1).flatten(0, 1)
    return flat[(torch.arange(many, device=flat.device) + len(flat) - many) % len(flat)]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""The refinement of a run's posterior by the likelihood, and what there is to say about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.parts import Replayed
from ..data.variables import Arrays
from ..simulators.base import HasLikelihood
from .config import RefineConfig
from .job import Job
from .progress import Reporter

if TYPE_CHECKING:
    from ..estimators.base import Posterior
    from ..estimators.importance import Refined

_MOVED = 1.0  # sd, of a pose, that weights may move it by without a word


def refine_draws(job: Job, posterior: Posterior, parts: Path, reporter: Reporter) -> Refined | None:
    """Weighted draws of the observation's posterior, where the configuration asks for them; likelihoods are kept meanwhile."""
    from ..estimators.adaptive import refine_adaptively
    from ..estimators.importance import refine

    if not job.config.infer.refine:
        return None
    assert isinstance(job.simulator, HasLikelihood)  # make_job has seen to it
    assert job.observation is not None
    known, observables, context = job.simulator, job.simulator.observables.names, tuple(job.observed_context)

    def log_likelihood(theta: np.ndarray, seen: Arrays) -> np.ndarray:
        named = ({name: seen[name] for name in names} for names in (observables, context) if names)
        return known.log_likelihood(theta, *named)

    likelihood = Replayed(parts / "likelihoods.npz", log_likelihood)
    infer, seed = job.config.infer, job.config.seed
    if isinstance(infer.refine, RefineConfig):
        how = infer.refine
        refined = refine_adaptively(
            posterior,
            likelihood,
            job.observation,
            method=how.method,
            ess=how.ess or infer.draws,
            likelihoods=how.likelihoods,
            seconds=how.seconds,
            seed=seed,
        )
    else:
        refined = refine(posterior, likelihood, job.observation, draws=infer.draws, seed=seed)
    if refined.refusal:
        reporter.say(f"refine: refused, the network's own draws are kept — {refined.refusal}")
    else:
        reporter.say(
            f"refine: {refined.ess:,.0f} effective of {len(refined.log_weights):,} proposals by {refined.method} "
            f"({refined.likelihoods:,} likelihoods), "
            f"log evidence {refined.log_evidence:.3f} ± {refined.log_evidence_sd:.3f}"
        )
        if refined.suspicion:
            reporter.say(f"refine: few draws of the network are worth anything — {refined.suspicion}", style="yellow")
    return refined


def pose_shifts(
    refined: Refined, names: Sequence[str], before: np.ndarray, after: np.ndarray, reporter: Reporter
) -> dict[str, Any]:
    """How far accepted weights moved the poses of a symmetry, for ``summary.json``; said where it is much.

    Args:
        refined: The weights.
        names: Of the parameters.
        before: The network's own draws.
        after: The weighted ones, resampled.
        reporter: Tells the user.
    """
    if refined.assumed is None or refined.refusal:
        return {}
    shifts = refined.assumed.shifts(names, before, after)
    for name, shift in shifts.items():
        if abs(shift) > _MOVED:
            reporter.say(
                f"refine: the weights moved `{name}` by {abs(shift):.1f} of its sd, and the network's own draws are off by as "
                f"much: the prior is not invariant, or {refined.assumed.suspicion}",
                style="yellow",
            )
    return {"pose_shift": shifts}

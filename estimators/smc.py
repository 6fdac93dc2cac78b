r"""Sequential Monte Carlo from the network's posterior to the exact one.

.. math:: \pi_\beta(z) \propto q(z | x)^{1 - \beta}\, [p(x | z)\, p(z)]^\beta, \qquad 0 = \beta_0 < \dots < \beta_T = 1,

each step as large as leaves half of the particles effective, then resampling, then Metropolis-Hastings moves: a random walk
with the particles' own covariance and independent draws of a mixture of Student's t fitted to them, in turn, until each
particle was moved twice on average. Del Moral, Doucet & Jasra (2006), https://arxiv.org/abs/cond-mat/0212648; adaptive
steps as Jasra et al. (2011), https://doi.org/10.1111/j.1467-9469.2010.00723.x.
"""

from __future__ import annotations

import numpy as np

from .importance import effective, systematic
from .student import StudentMixture, fit_student
from .target import Points, Target, no_nan

_PARTICLES = (100, 3000)
_SHARE = 60  # of the budget: particles times sweeps times steps fit into it
_MOVES = 2.0  # of a particle at each temperature
_MOST_SWEEPS = 12
_COMPONENTS = 4  # of the mixture that moves are proposed by
_WALK = 2.38  # over the square root of the dimension; Roberts, Gelman & Gilks (1997)


def temper(target: Target, rng: np.random.Generator) -> StudentMixture | None:
    """The mixture fitted to particles that have arrived at the posterior; None where what may be spent did not suffice."""
    particles = target.drawn(min(int(np.clip(target.left // _SHARE, *_PARTICLES)), target.left), _seed(rng))
    power = 0.0
    while power < 1:
        ratio = _ratio(particles)
        if not np.isfinite(ratio).any():
            return None
        step = _step(ratio, 1 - power)
        power = min(1.0, power + step)
        particles = particles.select(systematic(step * ratio, len(particles), rng))
        moved = _moved(target, particles, power, rng)
        if moved is None:
            return None
        particles = moved
    return fit_student(particles.z, np.ones(len(particles)), rng)


def _ratio(particles: Points) -> np.ndarray:
    """log of the posterior over the network, up to a constant; draws without any density weigh nothing."""
    return no_nan(particles.log_target - particles.log_q)


def _step(ratio: np.ndarray, most: float) -> float:
    """The largest step that leaves half of the particles effective."""
    half = np.isfinite(ratio).sum() / 2
    if effective(most * ratio) >= half:
        return most
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle * ratio) >= half else (low, middle)
    return max(low, 1e-9)


def _moved(target: Target, particles: Points, power: float, rng: np.random.Generator) -> Points | None:
    """Particles after Metropolis-Hastings at one temperature; None where nothing is left to pay for it."""
    mixture = fit_student(particles.z, np.ones(len(particles)), rng, most=_COMPONENTS)
    dim, moves, scale = particles.z.shape[1], 0.0, 1.0
    factor = np.linalg.cholesky(np.cov(particles.z.T).reshape(dim, dim) + 1e-12 * np.eye(dim))
    for sweep in range(_MOST_SWEEPS):
        if target.left < len(particles):
            return None
        walk = sweep % 2 == 1
        if walk:
            noise = rng.standard_normal(particles.z.shape) @ factor.T
            candidates = target.at(particles.z + scale * _WALK / np.sqrt(dim) * noise)
            log_ratio = _density(candidates, power) - _density(particles, power)
        else:
            candidates = target.at(mixture.sample(len(particles), rng))
            log_ratio = _density(candidates, power) - mixture.log_prob(candidates.z)
            log_ratio -= _density(particles, power) - mixture.log_prob(particles.z)
        accept = np.log(rng.random(len(particles))) < log_ratio
        particles = _chosen(particles, candidates, accept)
        moves += float(accept.mean())
        scale *= np.exp(float(accept.mean()) - 0.3) if walk else 1.0
        if moves >= _MOVES:
            break
    return particles


def _chosen(particles: Points, candidates: Points, accept: np.ndarray) -> Points:
    both = type(particles).join([particles, candidates])
    rows = np.arange(len(particles))
    return both.select(np.where(accept, rows + len(particles), rows))


def _density(points: Points, power: float) -> np.ndarray:
    """log of the tempered density, up to a constant."""
    return no_nan(power * points.log_target + ((1 - power) * points.log_q if power < 1 else 0.0))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))

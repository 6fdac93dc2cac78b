r"""Slice sampling of many chains of many targets at once.

One update of a chain at z draws a level below :math:`\log p(z)`, a line through z, and a point of the line above that
level: from a bracket placed at random around z, shrunk towards z by every point that is too low. Neal (2003), Annals of
Statistics 31, 705, with brackets of fixed width and no stepping out: what the width misses costs log-many shrinkages.

In a sweep the lines of a chain are a random orthonormal basis of the space in which a pool of points has unit covariance:
other chains during warm-up, from then on states that the warm-up passed, which do not change any more; so chains are
independent and every update leaves the target as it is. One in four lines goes along the difference of two points of the
pool instead, which leads from mode to mode: ter Braak (2006), Statistics and Computing 16, 239; Karamanis & Beutler (2021),
https://arxiv.org/abs/2002.06212. After the warm-up each sweep ends with as many jumps: a point drawn from the pool's kernel density
q, a multivariate t around each of its points as wide as the distance to its neighbours, is accepted with probability
:math:`\min(1, \tilde p(z') q(z) / \tilde p(z) q(z'))` (Tierney 1994, Annals of Statistics 22, 1701): so chains change modes
where the pool knows them, in their right proportions.

Points that a bracket would be shrunk to, should those before be rejected, are known beforehand: where few chains are left,
several are evaluated at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WIDTH = 6.0  # of a bracket, in standard deviations: a slice of a normal target has 3.3 on average
_ROUNDS = 40
_WORTH = 256  # points evaluated in about the time of one
_MOST_TRIES = 6
_DIFFERENCES = 0.25  # share of lines along differences
_JUMP = 2.0  # where on such a line the other mode lies
_SNAPSHOTS = 8  # of the second half of the warm-up make the pool
_NEIGHBOURS = 3
_FREEDOM = 4.0  # of the t distribution: heavier tails than what it is to propose for

LogDensity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Chains:
    """States of all chains.

    Attributes:
        states: ``(draw, observation, chain, parameter)``.
        log_density: Of each.
        complete: Whether the time budget sufficed.
    """

    states: Float[Tensor, "draw observation chain parameter"]
    log_density: Float[Tensor, "draw observation chain"]
    complete: bool


@dataclass(frozen=True, slots=True)
class _State:
    z: Float[Tensor, "rows parameter"]
    log_density: Float[Tensor, "rows"]


def slice_chains(
    log_density: LogDensity,
    start: Float[Tensor, "observation chain parameter"],
    *,
    draws: int,
    warmup: int,
    thin: int,
    deadline: float = math.inf,
) -> Chains:
    """Run all chains of all observations in lock-step; torch's global generator decides.

    Args:
        log_density: ``(points (rows, parameter), observation (rows,)) → (rows,)``, of any target on the whole space.
        start: First states.
        draws: States to keep of every chain.
        warmup: Sweeps before the first, each of as many updates as there are parameters.
        thin: Sweeps from one to the next.
        deadline: On the clock of `time.monotonic`: half of the time until then may be spent warming up. Stops with at
            least one draw.
    """
    observations, chains, parameters = start.shape
    which = torch.arange(observations, device=start.device).repeat_interleave(chains)
    state = _State(start.flatten(0, 1), log_density(start.flatten(0, 1), which))
    began = time.monotonic()
    pool, spent = [start], False
    for sweep in range(warmup):
        state = _swept(log_density, state, which, _gathered(pool))
        pool = [*pool, state.z.reshape(start.shape)][-(1 + sweep // 2) :]
        spent = time.monotonic() - began > (deadline - began) / 2
        if spent:
            break
    points = _gathered(pool)
    kernels = _kernels(points)
    kept: list[_State] = []
    while len(kept) < draws and not (kept and time.monotonic() > deadline):
        for _ in range(thin):
            state = _swept(log_density, state, which, points)
            for _ in range(parameters):
                state = _jumped(log_density, state, which, kernels)
        kept.append(state)
    shape = (len(kept), observations, chains)
    states = torch.stack([one.z for one in kept]).reshape(*shape, parameters)
    densities = torch.stack([one.log_density for one in kept]).reshape(shape)
    return Chains(states, densities, not spent and len(kept) == draws)


def _gathered(pool: list[Tensor]) -> Float[Tensor, "observation point parameter"]:
    """Snapshots of all chains as points, not too many of them."""
    return torch.cat(pool[:: max(1, len(pool) // _SNAPSHOTS)], 1)


def _swept(
    log_density: LogDensity,
    state: _State,
    which: Int[Tensor, "rows"],
    pool: Float[Tensor, "observation point parameter"],
) -> _State:
    """As many updates of every chain as there are parameters."""
    basis = torch.linalg.qr(torch.randn_like(pool[0, :1].T @ pool[0, :1]))[0]
    for direction in (_root(pool) @ basis).unbind(-1):
        along = torch.rand(len(which), 1, device=pool.device) < _DIFFERENCES
        state = _updated(log_density, state, which, torch.where(along, _differences(pool, which), direction[which]))
    return state


@dataclass(frozen=True, slots=True)
class _Kernels:
    """A density around points, in coordinates in which they have unit covariance.

    Attributes:
        points: Centres.
        scales: Widths.
        root: From these coordinates to z.
    """

    points: Float[Tensor, "observation point parameter"]
    scales: Float[Tensor, "observation point"]
    root: Float[Tensor, "observation parameter parameter"]

    def sample(self, which: Int[Tensor, "rows"]) -> Float[Tensor, "rows parameter"]:
        """One point for each chain."""
        chosen = torch.randint(self.points.shape[1], (len(which),), device=which.device)
        centre, scale = self.points[which, chosen], self.scales[which, chosen]
        widening = torch.distributions.Chi2(torch.full_like(scale, _FREEDOM)).sample() / _FREEDOM
        white = centre + (scale / widening.sqrt())[:, None] * torch.randn_like(centre)
        return (self.root[which] @ white[..., None])[..., 0]

    def log_prob(self, z: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows"]:
        """Up to a constant, of as many chains of each observation in turn."""
        each = z.reshape(len(self.points), -1, z.shape[-1])
        white = torch.linalg.solve_triangular(self.root, each.mT, upper=False).mT
        square = (torch.cdist(white, self.points) / self.scales[:, None]).square()
        logs = -0.5 * (_FREEDOM + z.shape[-1]) * torch.log1p(square / _FREEDOM)
        return (logs - z.shape[-1] * self.scales.log()[:, None]).logsumexp(-1).flatten()


def _kernels(pool: Float[Tensor, "observation point parameter"]) -> _Kernels:
    root = _root(pool)
    white = torch.linalg.solve_triangular(root, pool.mT, upper=False).mT
    nearest = torch.cdist(white, white).kthvalue(min(1 + _NEIGHBOURS, pool.shape[1]), dim=-1).values
    return _Kernels(white, nearest.clamp(min=1e-3), root)


def _jumped(log_density: LogDensity, state: _State, which: Int[Tensor, "rows"], kernels: _Kernels) -> _State:
    """One proposal for every chain that does not depend on where it is."""
    z = kernels.sample(which)
    density = log_density(z, which)
    gain = density - state.log_density + kernels.log_prob(state.z) - kernels.log_prob(z)
    accepted = torch.rand_like(gain).log() < gain
    return _State(torch.where(accepted[:, None], z, state.z), torch.where(accepted, density, state.log_density))


def _root(pool: Float[Tensor, "observation point parameter"]) -> Float[Tensor, "observation parameter parameter"]:
    """A root of the covariance of each observation's points, drawn to its diagonal where they are few; never singular."""
    points, parameters = pool.shape[1:]
    centred = pool - pool.mean(1, keepdim=True)
    covariance = centred.mT @ centred / points
    own = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1) + 1e-6)
    return torch.linalg.cholesky(covariance.lerp(own, parameters / (parameters + points)))


def _differences(
    pool: Float[Tensor, "observation point parameter"], which: Int[Tensor, "rows"]
) -> Float[Tensor, "rows parameter"]:
    """For each chain, half the difference of two different points of its observation's pool."""
    points, rows = pool.shape[1], len(which)
    first = torch.randint(points, (rows,), device=pool.device)
    second = (first + torch.randint(1, points, (rows,), device=pool.device)) % points
    return (pool[which, first] - pool[which, second]) / _JUMP


def _updated(
    log_density: LogDensity, state: _State, which: Int[Tensor, "rows"], direction: Float[Tensor, "rows parameter"]
) -> _State:
    """One update of every chain."""
    rows = len(state.z)
    level = state.log_density + torch.rand_like(state.log_density).log()
    z, density = state.z.clone(), state.log_density.clone()
    left = -_WIDTH * torch.rand_like(level)
    right = left + _WIDTH
    pending = torch.arange(rows, device=z.device)
    for _ in range(_ROUNDS):
        tries = max(1, min(_MOST_TRIES, _WORTH // len(pending)))
        t, left, right = _shrinking(left, right, tries)
        points = state.z[pending] + t[..., None] * direction[pending]
        values = log_density(points.flatten(0, 1), which[pending].repeat(tries)).reshape(tries, -1)
        above = values >= level[pending]
        found, first = above.any(0), above.int().argmax(0)
        column = torch.arange(len(pending), device=z.device)
        z[pending[found]] = points[first, column][found]
        density[pending[found]] = values[first, column][found]
        pending, left, right = pending[~found], left[~found], right[~found]
        if not len(pending):
            break
    return _State(z, density)


def _shrinking(
    left: Float[Tensor, "rows"], right: Float[Tensor, "rows"], tries: int
) -> tuple[Float[Tensor, "tries rows"], Float[Tensor, "rows"], Float[Tensor, "rows"]]:
    """Points of the bracket, each from what the one before leaves of it if it is rejected; and the last bracket."""
    points = []
    for share in torch.rand(tries, len(left), dtype=left.dtype, device=left.device):
        t = left + share * (right - left)
        left, right = torch.where(t < 0, t, left), torch.where(t < 0, right, t)
        points.append(t)
    return torch.stack(points), left, right

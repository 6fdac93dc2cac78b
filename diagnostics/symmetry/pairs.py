"""What a symmetry is tried on: parameters, elements that keep them inside the prior, and data with noise that is shared.

Data of the same ``noise`` have the same random numbers, as far as the simulator draws alike at every theta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data.errors import SimulatorError, SymmetryError
from ...data.records import OK
from ...data.variables import Arrays
from ...estimators.symmetry.base import Symmetry
from ...simulators.base import ContextPrior, Simulator
from ...simulators.block import BlockSimulator, Protection
from ...simulators.prior import Prior

Data = dict[str, Tensor]

Where = Literal["theta", "partner", "moved", "partner_moved"]

_TRIES = 50
_FEWEST = 20
_NOISES: dict[Where, tuple[int, ...]] = {
    "theta": (1, 2),
    "partner": (1, 2),
    "moved": (1, 2, 3, 4),
    "partner_moved": (1, 2),
}


@dataclass(frozen=True, slots=True)
class Pairs:
    """theta, g theta and h g theta inside the prior, with a partner of each theta for which the same holds.

    Attributes:
        simulator: The forward model.
        prior: Of theta.
        symmetry: What is tried.
        theta: Draws of the prior.
        partner: Other draws; whatever noise they share with theta drops out of differences.
        g: Moves both to another pose of the prior.
        h: Moves both on.
        moved: G theta.
        partner_moved: G on the partners.
        context: Known nuisance of every row.
        seed: Of everything.
        x: Data at each of the four thetas, by noise; see `at`.
    """

    simulator: Simulator
    prior: Prior
    symmetry: Symmetry
    theta: Tensor
    partner: Tensor
    g: Tensor
    h: Tensor
    moved: Tensor
    partner_moved: Tensor
    context: Arrays
    seed: int
    x: dict[tuple[Where, int], Data]

    def at(self, where: Where, noise: int) -> Data:
        """x in float64; the same ``noise`` is the same random numbers."""
        return self.x[where, noise]

    def act(self, g: Tensor, x: Data) -> Data:
        """T_g x."""
        return self.symmetry.act_x(g, x)

    def select(self, kept: Bool[Tensor, "rows"]) -> Pairs:
        """Some of the rows."""
        names = ("theta", "partner", "g", "h", "moved", "partner_moved")
        return replace(
            self,
            **{name: getattr(self, name)[kept] for name in names},
            context={name: values[kept.numpy()] for name, values in self.context.items()},
            x={key: {name: values[kept] for name, values in x.items()} for key, x in self.x.items()},
        )


def draw_pairs(
    simulator: Simulator, prior: Prior, context: ContextPrior | None, symmetry: Symmetry, rows: int, seed: int
) -> Pairs:
    """Draw and simulate them; rows without a partner in the prior, or without finite data, are left out.

    Raises:
        SymmetryError: Hardly any stay in the prior.
        SimulatorError: Hardly any can be simulated.
    """
    rng, group = np.random.default_rng((seed, 0)), symmetry.group
    theta, second, third, partner = (torch.from_numpy(prior.sample(rows, rng)) for _ in range(4))
    g = group.compose(symmetry.pose(second), group.inverse(symmetry.pose(theta)))
    h = group.compose(symmetry.pose(third), group.inverse(symmetry.pose(second)))
    for _ in range(_TRIES):
        stays = _stays(prior, symmetry, g, h, partner)
        partner = torch.where(stays[:, None], partner, torch.from_numpy(prior.sample(rows, rng)))
    kept = _stays(prior, symmetry, g, h, partner) & _stays(prior, symmetry, g, h, theta)
    if kept.sum() < _FEWEST:
        raise SymmetryError(
            f"only {int(kept.sum())} of {rows} draws stay inside the prior when they are moved to the pose of another: the "
            "symmetry moves more than the parameters that carry it, or `rows` is too small"
        )
    moved, partner_moved = (symmetry.act_theta(g, values) for values in (theta, partner))
    known = context.draw(rows, rng) if context else {}
    drawn = Pairs(simulator, prior, symmetry, theta, partner, g, h, moved, partner_moved, known, seed, {})
    return _simulated(drawn.select(kept))


def _simulated(pairs: Pairs) -> Pairs:
    usable = torch.ones(len(pairs.theta), dtype=torch.bool)
    for where, noises in _NOISES.items():
        for noise in noises:
            simulate = BlockSimulator(pairs.simulator, pairs.prior, (pairs.seed, noise), Protection())
            records = simulate.at(getattr(pairs, where).numpy(), pairs.context)
            usable &= torch.from_numpy(records.status == OK)
            if usable.sum() < _FEWEST:
                reason = records.reason[records.status != OK][0] if records.reason is not None else ""
                raise SimulatorError(f"only {int(usable.sum())} of {len(usable)} rows can be simulated; {reason}")
            pairs.x[where, noise] = {name: torch.from_numpy(x).double() for name, x in records.x.items()}
    return pairs.select(usable)


def _stays(
    prior: Prior, symmetry: Symmetry, g: Tensor, h: Tensor, theta: Float[Tensor, "rows parameter"]
) -> Bool[Tensor, "rows"]:
    once = symmetry.act_theta(g, theta)
    twice = symmetry.act_theta(h, once)
    return prior.contains(theta) & prior.contains(once) & prior.contains(twice)


def minus(first: Data, second: Data) -> Data:
    """Entry by entry."""
    return {name: values - second[name] for name, values in first.items()}


def spread(x: Data) -> dict[str, Tensor]:
    """Standard deviation of all entries of an observable; 1 where they are all the same."""
    return {name: _or_one(values.std()) for name, values in x.items()}


def flat(x: Data) -> Float[Tensor, "rows entry"]:
    """All observables beside each other."""
    return torch.cat([values.reshape(len(values), -1) for values in x.values()], dim=1)


def rms(x: Data, unit: dict[str, Tensor]) -> float:
    """Root mean square over everything, each observable in its unit."""
    return float(flat({name: values / unit[name] for name, values in x.items()}).square().mean().sqrt())


def _or_one(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, 1.0)

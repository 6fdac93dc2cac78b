r"""What the attacked posterior would have predicted: how far from the observation data lie that are simulated from it.

.. math:: d(\tilde x) = \mathrm{median}_{\theta \sim q(\cdot | \tilde x),\; x' \sim p(\cdot | \theta)}\, \| L^{-1} (x' - x) \|

x is the observation before the attack, and :math:`d(x)` what to compare with. The norm and L are those of the ball, and entries
that no perturbation may touch do not count. Gloeckler, Deistler & Macke (2023), https://arxiv.org/abs/2305.14984, with five to
ten draws. Simulations that fail are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...data.errors import ShapeError
from ...data.records import OK
from ...data.variables import Arrays, Variables
from ...estimators.base import Posterior
from ...estimators.robust.balls import Ball
from ...simulators.base import Simulator, context_of
from ...simulators.block import BlockSimulator, Protection
from .region import Region

_OBSERVATIONS = 25  # the first ones: simulators may be slow


@dataclass(frozen=True, slots=True)
class Predictive:
    """Distances of data that a simulator makes of posterior draws, from what was observed.

    Args:
        simulator: One with context is given that of each observation.
        draws: For each observation.
        protection: Against simulations that fail.
        seed: Of draws and simulations, which clean and attacked observations have in common.
    """

    simulator: Simulator
    draws: int
    protection: Protection
    seed: int

    def require_fit(self, posterior: Posterior) -> None:
        """Refuse a simulator of something else.

        Raises:
            ShapeError: Its parameters, or its observables and context, are not those of the posterior.
        """
        given = {v.name: v.shape for v in (*self.simulator.observables, *self._context)}
        wanted = {v.name: v.shape for v in posterior.observables}
        unlike = [name for name, shape in wanted.items() if given.get(name) != shape]
        unlike += [name for name in self._context.names if name not in wanted]
        if unlike:
            raise ShapeError(
                f"`simulator` must give {', '.join(wanted)} as the posterior knows them; {', '.join(unlike)} differ: leave "
                "`simulator` out, or give the one that the posterior was trained with"
            )
        if len(self.simulator.prior.names) != len(posterior.parameters):
            raise ShapeError(
                f"`simulator` must have the {len(posterior.parameters)} parameters of the posterior; got "
                f"{len(self.simulator.prior.names)}"
            )

    def distance(
        self, posterior: Posterior, where: Region, ball: Ball, x: Float[Tensor, "rows entry"]
    ) -> Float[Tensor, "predicted"]:
        """Of the first observations, clean or attacked; NaN where no simulation is ok."""
        x = x[:_OBSERVATIONS]
        theta = posterior.sample_batched((self.draws,), where.named(x), seed=self.seed).cpu()
        observed = where.x[: len(x)].repeat(self.draws, 1)
        simulated, ok = self._simulated(theta.flatten(0, 1).numpy(), posterior.observables, where.named(observed))
        distance = torch.full((len(observed),), torch.nan)
        distance[ok] = where.length((simulated - observed)[ok] * where.free, ball)[:, 0]
        return distance.reshape(self.draws, -1).nanquantile(0.5, dim=0).double()

    def _simulated(
        self, theta: np.ndarray, wanted: Variables, observed: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "rows entry"], Tensor]:
        """All entries of x, those of its context as they were observed, and which rows are ok."""
        known: Arrays = {v.name: observed[v.name].numpy().astype(v.dtype) for v in self._context}
        records = BlockSimulator(self.simulator, self.simulator.prior, (self.seed, 11), self.protection).at(
            theta, known
        )
        parts = {**records.x, **known}
        flat = [parts[v.name].reshape(len(theta), v.size).astype(np.float32) for v in wanted]
        return torch.from_numpy(np.concatenate(flat, 1)), torch.from_numpy(records.status == OK)

    @property
    def _context(self) -> Variables:
        known = context_of(self.simulator)
        return known.variables if known else Variables(())

"""What refinement asks: a posterior up to a constant, row by row, within a budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from ..data.errors import ShapeError
from ..data.variables import Arrays
from .base import Posterior
from .importance import LogLikelihood, joint


@dataclass(frozen=True, slots=True)
class Points:
    """Rows with all that is known of them; densities of z.

    Attributes:
        theta: ``(rows, parameter)``.
        z: The same in the prior's unconstrained space.
        log_det: log |dz / dtheta|.
        log_joint: log p(x | theta) p(theta), a density of theta.
        log_q: log q(z | x) of the network.
    """

    theta: Float[np.ndarray, "rows parameter"]
    z: Float[np.ndarray, "rows parameter"]
    log_det: Float[np.ndarray, " rows"]
    log_joint: Float[np.ndarray, " rows"]
    log_q: Float[np.ndarray, " rows"]

    @property
    def log_target(self) -> Float[np.ndarray, " rows"]:
        """log p(x, z)."""
        return self.log_joint - self.log_det

    def __len__(self) -> int:
        return len(self.theta)

    def select(self, index: np.ndarray) -> Points:
        """Some of the rows, in some order."""
        return Points(*(getattr(self, name)[index] for name in self.__slots__))

    @classmethod
    def join(cls, parts: Sequence[Points]) -> Points:
        """Rows one after another."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


class Target:
    """The posterior up to a constant, and the network, at one observation; counts what it is asked.

    Args:
        posterior: The network's.
        log_likelihood: A simulator's, or a surrogate's: ``(theta (rows, parameter), x of one row) → (rows,)``.
        x: One observation.
        likelihoods: Rows that may be asked for.
        seconds: Time that may pass before no more are asked for; None for any.

    Attributes:
        spent: Rows that were asked for.
        most: Rows that may be, in all.
    """

    def __init__(
        self, posterior: Posterior, log_likelihood: LogLikelihood, x: Arrays, likelihoods: int, seconds: float | None
    ) -> None:
        self.posterior, self._log_likelihood = posterior, log_likelihood
        self.x = posterior.observables.rows(x, finite=not posterior.imputes)
        self.spent, self.most = 0, likelihoods
        self._seconds, self._started = seconds, time.monotonic()

    @property
    def left(self) -> int:
        """Rows that may still be asked for; none when the time is over."""
        late = self._seconds is not None and time.monotonic() - self._started >= self._seconds
        return 0 if late else self.most - self.spent

    @property
    def out_of(self) -> str:
        """What ran out, with the remedy; empty while something is left."""
        if self.left > 0:
            return ""
        if self.spent >= self.most:
            return f"all {self.most:,} likelihoods are spent: allow more `likelihoods`, or train the network better"
        return f"the {self._seconds:g} seconds are over: allow more `seconds`, or train the network better"

    def drawn(self, rows: int, seed: int) -> Points:
        """Draws of the network."""
        theta, log_q = self.posterior.sample_with_log_prob((rows,), self.x, seed=seed)
        return self._points(theta[:, 0].cpu().double(), log_q[:, 0].cpu().double().numpy())

    def at(self, z: Float[np.ndarray, "rows parameter"]) -> Points:
        """Given rows; those whose theta cannot be told from the edge of the support lie where it is."""
        theta = self.posterior.prior.from_unconstrained(torch.from_numpy(z))
        with torch.no_grad():
            log_q = self.posterior.log_prob(theta, self.x).cpu().double().numpy()
        return self._points(theta, log_q, z)

    def _points(self, theta: torch.Tensor, log_q: np.ndarray, z: np.ndarray | None = None) -> Points:
        if len(theta) > self.most - self.spent:
            raise ShapeError(f"`z` must have no more than the {self.most - self.spent} rows left; got {len(theta)}")
        self.spent += len(theta)
        prior = self.posterior.prior
        where = prior.to_unconstrained(theta) if z is None else torch.from_numpy(z)
        log_det = prior.log_abs_det(theta, where).numpy()
        log_joint = joint(prior, self._log_likelihood, theta.numpy(), self.x)
        return Points(theta.numpy(), where.numpy(), log_det, log_joint, no_nan(log_q - log_det))


def no_nan(values: np.ndarray) -> np.ndarray:
    """Where a density is 0 and so is that of the proposal, the weight is 0."""
    return np.where(np.isnan(values), -np.inf, values)

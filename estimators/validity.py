r"""The probability that a simulation is valid, learned from a campaign that has rows that are not.

.. math:: p(x, \mathrm{valid} | \theta) = p(x | \theta, \mathrm{valid})\, p(\mathrm{valid} | \theta)

A likelihood or a ratio learned from valid rows alone is the first factor; without the second it is biased wherever
validity depends on theta. A posterior learned from valid rows is :math:`p(\theta | x, \mathrm{valid})`, that under the
prior restricted to where simulations work, :math:`p(\theta)\, p(\mathrm{valid} | \theta)`: the same where x decides what is
valid, and in need of the same factor where theta and luck do, as when a simulator crashes.

Logistic regression with a small network over the prior's unconstrained space. Lueckmann et al. (2017),
https://arxiv.org/abs/1711.01861, appendix on bad simulations.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ..data.batch import Batch
from ..data.errors import ShapeError, UnsupportedError
from ..data.loaders import as_batch
from ..data.records import OK, PENDING
from ..data.store import SimulationStore
from ..data.variables import Variable, Variables
from ..simulators.prior import Prior
from .base import Estimator, Posterior, seeded
from .networks import ValidityLogit
from .settings import EstimatorSettings, TrainingSettings
from .train import split
from .training import train_estimator

_VALID = Variables([Variable("valid")])
_STEPS = 3000
_LEAST_ACCEPTED = 1e-4
_TRIED = 10 / _LEAST_ACCEPTED  # before it is judged: ten are expected at the limit


class Validity:
    """p(valid | theta) under a prior.

    Args:
        network: Gives its logit.
        prior: Of theta.
    """

    def __init__(self, network: _Logit, prior: Prior) -> None:
        self.network, self.prior = network.eval(), prior

    def log_prob(self, theta: Tensor | np.ndarray) -> Float[Tensor, "*batch"]:
        """log p(valid | theta), ``theta (*batch, parameter)``; differentiable; add it to a log-likelihood of valid rows."""
        return logsigmoid(self.network.logit(torch.as_tensor(theta))).double()

    def sample(self, rows: int, rng: np.random.Generator) -> Float[np.ndarray, "rows parameter"]:
        """Draws of the prior restricted to where simulations are valid, by rejection.

        Raises:
            UnsupportedError: Fewer than one draw in ten thousand is accepted.
        """
        accepted = np.empty((0, self.prior.dim))
        tried = 0
        while len(accepted) < rows:
            theta = self.prior.sample(max(rows, 1000), rng)
            with torch.no_grad():
                keep = rng.random(len(theta)) < self.log_prob(torch.from_numpy(theta)).exp().numpy()
            accepted, tried = np.concatenate([accepted, theta[keep]]), tried + len(theta)
            if tried >= _TRIED and len(accepted) < _LEAST_ACCEPTED * tried:
                raise UnsupportedError(
                    f"`prior` is almost nowhere valid: {len(accepted)} of {tried} draws were accepted"
                )
        return accepted[:rows]


def learn_validity(
    store: SimulationStore, *, training: TrainingSettings | None = None, seed: int = 0, folder: str | Path | None = None
) -> Validity:
    """Learn p(valid | theta) from all rows of a campaign, whatever became of them.

    Args:
        store: The campaign; it knows its prior.
        training: Optimisation; some 3,000 steps when None.
        seed: Of initial weights and of the order of rows.
        folder: Keeps checkpoints.

    Raises:
        ShapeError: Every row that was simulated is valid, or none is: there is nothing to learn.
    """
    status = store.status
    simulated = status != PENDING
    valid = (status[simulated] == OK).astype(np.float32)
    if valid.all() or not valid.any():
        share = "all are" if valid.all() and len(valid) else "none is"
        raise ShapeError(f"`store` must hold valid and other rows; of {len(valid)} in {store.path} {share} valid")
    prior = Prior.from_json(store.attributes["campaign"]["prior"])
    rows = as_batch(store.read_array("theta")[simulated], {"valid": valid})
    group = store.read_array("group")[simulated] if store.schema.grouped else None
    training = training or _enough(len(valid))
    with seeded(seed):
        network = _Logit(prior, _VALID, EstimatorSettings())
    where = None if folder is None else Path(folder)
    train_estimator(network, *split(rows, training.validation, group), training, seed=seed, folder=where)
    return Validity(network, prior)


def _enough(rows: int) -> TrainingSettings:
    """Steps, not epochs, are what few rows need more of."""
    batch = max(8, min(256, rows // 16))
    epochs = max(10, round(_STEPS * batch / rows))
    return TrainingSettings(epochs=epochs, batch_size=batch, patience=epochs, learning_rate=3e-3, validation=0.1)


class _Logit(Estimator):
    """A network from z to the logit of p(valid | theta); an estimator for the sake of its training."""

    def __init__(self, prior: Prior, observables: Variables, settings: EstimatorSettings) -> None:
        super().__init__(prior, observables, settings)
        self.prior, self.observables, self.settings = prior, observables, settings
        self.network = ValidityLogit(prior.dim)

    @property
    def transforms(self) -> dict[str, str]:
        return {}

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        """z is N(0, I) under the prior: there is nothing to take from the rows."""

    def logit(self, theta: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch"]:
        return self.network(self.prior.to_unconstrained(theta).float())

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        return binary_cross_entropy_with_logits(self.logit(batch.theta), batch.x["valid"], reduction="none")

    def posterior(self, prior: Prior) -> Posterior:
        raise UnsupportedError("p(valid | theta) is no posterior")

"""A density that is known exactly, for what is asked of posteriors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simfer.data.batch import Batch
from simfer.data.variables import Variable, Variables
from simfer.estimators import checkpoints
from simfer.estimators.base import Estimator
from simfer.estimators.direct import DirectPosterior
from simfer.estimators.module import TrainingModule
from simfer.estimators.settings import EstimatorSettings
from simfer.simulators.prior import Prior


class Gaussian(Estimator):
    """q(z | x) = N(x, covariance), in the prior's unconstrained space."""

    def __init__(self, prior: Prior, covariance: Tensor) -> None:
        observables, settings = Variables([Variable("x", (prior.dim,))]), EstimatorSettings()
        super().__init__(prior, observables, settings)
        self.prior, self.observables, self.settings = prior, observables, settings
        self.factor = nn.Parameter(torch.linalg.cholesky(covariance).float())

    transforms: dict[str, str] = {}  # noqa: RUF012

    def fit_preprocess(self, portions: Any) -> None:
        pass

    def condition(self, x: dict[str, Tensor]) -> Tensor:
        return x["x"]

    def density(self, context: Tensor) -> Any:
        return torch.distributions.MultivariateNormal(context, scale_tril=self.factor)

    def loss(self, batch: Any) -> Tensor:
        return -self.density(batch.x["x"]).log_prob(self.prior.to_unconstrained(batch.theta).float())

    def posterior(self, prior: Prior) -> DirectPosterior:
        return DirectPosterior(self)


@pytest.fixture
def gaussian() -> Callable[[Prior, Tensor], Gaussian]:
    return Gaussian


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """A context in which training ends with an error before a given step, with a checkpoint after every step before."""
    step = TrainingModule.training_step

    @contextmanager
    def before(at: int) -> Iterator[None]:
        def stopping(self: TrainingModule, rows: Batch, index: int) -> Tensor:
            if self.global_step == at:
                raise KeyError
            return step(self, rows, index)

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "_EVERY", 0.0)
            patched.setattr(TrainingModule, "training_step", stopping)
            with pytest.raises(KeyError):
                yield

    return before

"""A trained estimator with its prior, saved to a folder and loaded from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from ..data import registry
from ..data.errors import ModelFormatError, UnknownNameError, did_you_mean
from ..data.model import read_model, write_model
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Estimator, Posterior
from .embeddings.own import with_classes
from .ensemble import Ensemble, member_seeds
from .settings import EstimatorSettings


@dataclass(frozen=True, slots=True)
class Model:
    """A trained estimator and what it was trained for.

    Attributes:
        estimator: With its best weights.
        prior: Of the simulations.
        facts: Losses, rows, seconds and provenance of the training.
    """

    estimator: Estimator
    prior: Prior
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def posterior(self) -> Posterior:
        return self.estimator.posterior(self.prior)

    def save(self, folder: str | Path) -> None:
        """Write a model folder in one step, replacing an older one."""
        described = {
            "estimator": self.estimator.settings.model_dump(mode="json"),
            "prior": self.prior.to_json(),
            "observables": self.estimator.observables.to_json(),
            "facts": self.facts,
        }
        write_model(Path(folder), described, self.estimator.state_dict())


def build_estimator(prior: Prior, observables: Variables, settings: EstimatorSettings, seed: int = 0) -> Estimator:
    """An untrained estimator by the registered name in ``settings.method``; ``seed`` sets its initial weights.

    Raises:
        UnknownNameError: No such estimator. Paths such as ``module:Class`` are not taken here, because a model
            file must not be able to import anything.
    """
    known = registry.names("estimators")
    if settings.method not in known:
        raise UnknownNameError(f"unknown estimator `{settings.method}`; {did_you_mean(settings.method, known)}")
    if settings.ensemble > 1:
        alone = settings.model_copy(update={"ensemble": 1})
        seeds = member_seeds(seed, settings.ensemble)
        return Ensemble([build_estimator(prior, observables, alone, own) for own in seeds])
    kind: type[Estimator] = registry.resolve("estimators", settings.method)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(prior, observables, settings)


def load_model(folder: str | Path, *, modules: Mapping[str, Callable[..., nn.Module]] | None = None) -> Model:
    """Load a model folder, on the CPU. Nothing that its files name is imported.

    Args:
        folder: As `Model.save` wrote it.
        modules: The classes of the user's own that the model is built of, by the names it has for them or by their own.

    Raises:
        MissingFileError: No model there.
        ModelFormatError: Damaged, of another schema version, of a method that is not installed, or of a class that was not
            handed over.
    """
    described, weights = read_model(Path(folder))
    try:
        settings = EstimatorSettings.model_validate(described["estimator"])
        settings = settings.model_copy(update={"embedding": with_classes(settings.embedding, modules or {})})
        prior, observables = Prior.from_json(described["prior"]), Variables.from_json(described["observables"])
        estimator = build_estimator(prior, observables, settings)
        estimator.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, ValidationError, UnknownNameError) as error:
        raise ModelFormatError(f"the model at {folder} cannot be rebuilt: {error}") from error
    return Model(estimator.eval(), prior, described.get("facts", {}))

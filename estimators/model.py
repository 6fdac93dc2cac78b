"""A trained estimator with its prior, saved to a folder and loaded from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from ..data import registry
from ..data.errors import (
    ConfigError,
    ModelFormatError,
    ShapeError,
    SymmetryError,
    UnknownNameError,
    UnsupportedError,
    did_you_mean,
)
from ..data.model import read_model, write_model
from ..data.ranges import Ranges
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Estimator, Posterior
from .embeddings.own import with_classes
from .ensemble import Ensemble
from .likelihood_ensemble import LikelihoodEnsemble
from .members import member_seeds
from .potential import LikelihoodEstimator
from .settings import EstimatorSettings
from .symmetry.assumed import assumed_symmetry
from .symmetry.canonical import Canonical
from .symmetry.gnpe import GNPE
from .symmetry.own import with_object

_RANGE = "range:"  # before the names of the training data's ranges in the file of weights


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
        """Ready to be asked; warns where an observation lies outside the training data."""
        posterior = self.estimator.posterior(self.prior)
        posterior.ranges = self.estimator.seen
        posterior.assumed = assumed_symmetry(self.prior, self.estimator.observables, self.estimator.settings)
        return posterior

    def to(self, device: str | torch.device) -> Model:
        """Move the network to a device, and return self.

        Raises:
            UnsupportedError: There is no such device here.
        """
        _move(self.estimator, device)
        return self

    def as_sbi(self) -> nn.Module:
        """The density as sbi's `ConditionalDensityEstimator` has it; see `Estimator.as_sbi`."""
        return self.estimator.as_sbi()

    def export(self, path: str | Path, what: str = "sampler") -> None:
        """Write one function of the posterior as a program for torch alone; see `export.export_posterior`."""
        from .export import export_posterior  # imports torch.export, which takes a second

        export_posterior(self, path, what)

    def save(self, folder: str | Path) -> None:
        """Write a model folder in one step, replacing an older one."""
        described = {
            "estimator": self.estimator.settings.model_dump(mode="json"),
            "prior": self.prior.to_json(),
            "observables": self.estimator.observables.to_json(),
            "facts": self.facts,
        }
        ranges = self.estimator.seen.to_tensors() if self.estimator.seen else {}
        weights = self.estimator.state_dict() | {_RANGE + key: values for key, values in ranges.items()}
        write_model(Path(folder), described, weights)


def build_estimator(prior: Prior, observables: Variables, settings: EstimatorSettings, seed: int = 0) -> Estimator:
    """An untrained estimator by the registered name in ``settings.method``; ``seed`` sets its initial weights.

    Raises:
        UnknownNameError: No such estimator. Paths such as ``module:Class`` are not taken here, because a model
            file must not be able to import anything.
    """
    known = registry.names("estimators")
    if settings.method not in known:
        raise UnknownNameError(f"unknown estimator `{settings.method}`; {did_you_mean(settings.method, known)}")
    if settings.symmetry and settings.symmetry.by != "augmentation":
        relative = GNPE if settings.symmetry.by == "proxies" else Canonical
        return relative(prior, observables, settings, build_estimator, seed)
    if settings.ensemble > 1:
        alone = settings.model_copy(update={"ensemble": 1})
        seeds = member_seeds(seed, settings.ensemble)
        members = [build_estimator(prior, observables, alone, own) for own in seeds]
        return LikelihoodEnsemble(members) if isinstance(members[0], LikelihoodEstimator) else Ensemble(members)
    kind: type[Estimator] = registry.resolve("estimators", settings.method)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(prior, observables, settings)


def load_model(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    modules: Mapping[str, Any] | None = None,
) -> Model:
    """Load a model folder. Nothing that its files name is imported.

    Args:
        folder: As `Model.save` wrote it, on whatever device.
        device: Where it is to be asked.
        modules: What of the user's own the model is built of, by the names it has for it or by its own: classes of networks, a
            symmetry, a function that gives a pose.

    Raises:
        MissingFileError: No model there, or a file of it is missing.
        ModelFormatError: Damaged, of a newer schema version, of a method that is not installed, or of a class that was not
            handed over.
        PriorError: The prior has a class of the user's own, which must be loaded first.
        UnsupportedError: There is no such device here.
    """
    described, weights = read_model(Path(folder))
    try:
        settings = EstimatorSettings.model_validate(described["estimator"])
        settings = _with_own(settings, modules or {})
        prior, observables = Prior.from_json(described["prior"]), Variables.from_json(described["observables"])
        estimator = build_estimator(prior, observables, settings)
        ranges = {key.removeprefix(_RANGE): weights.pop(key) for key in list(weights) if key.startswith(_RANGE)}
        estimator.load_state_dict(weights)
    except (
        KeyError,
        TypeError,
        RuntimeError,
        ValidationError,
        UnknownNameError,
        ConfigError,
        ShapeError,
        SymmetryError,
    ) as error:
        raise ModelFormatError(f"the model at {folder} cannot be rebuilt: {error}") from error
    estimator.seen = Ranges.from_tensors(ranges, observables)
    return Model(_move(estimator.eval(), device), prior, described.get("facts", {}))


def _with_own(settings: EstimatorSettings, modules: Mapping[str, Any]) -> EstimatorSettings:
    embedding, symmetry = with_classes(settings.embedding, modules), with_object(settings.symmetry, modules)
    return settings.model_copy(update={"embedding": embedding, "symmetry": symmetry})


def _move(estimator: Estimator, device: str | torch.device) -> Estimator:
    try:
        return estimator.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UnsupportedError(f"`device` must be one that is here; got {str(device)!r}: {error}") from error

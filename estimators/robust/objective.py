"""The objective with everything that makes it robust: what is learned from, and what is added."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...data.batch import Batch
from ...data.errors import UnsupportedError
from ..base import Estimator
from ..settings import TrainingSettings
from ..symmetry.augment import Augmentation
from ..symmetry.view import declared_symmetry
from .augmentation import Adversarial, Noise
from .base import Change, Term
from .fisher import FisherPenalty
from .perturbations import Space
from .trades import Trades


class Objective:
    """The mean loss of each member, of changed data and with terms added.

    Args:
        settings: Of the training.
        estimator: What is trained.
        rows: What it is trained on.
        seed: Of all that is drawn.

    Raises:
        UnsupportedError: An estimator that a term cannot be added to, or that imputes; an x that does not vary.
    """

    def __init__(
        self, settings: TrainingSettings, estimator: Estimator, rows: Iterable[Batch] = (), seed: int = 0
    ) -> None:
        s, fixed = settings, estimator.settings.fixed
        self.changes: list[Change] = []
        self.terms: list[Term] = []
        if s.robust and estimator.settings.impute:
            raise UnsupportedError(
                f"`{s.robust[0]}` needs all of x, and `impute` lets entries be missing: use `on_invalid: mask`, or leave it out"
            )
        if s.robust and not set(estimator.observables.names) - set(fixed):
            raise UnsupportedError(f"`{s.robust[0]}` needs observables besides context and masks: leave it out")
        space = Space.of(rows, fixed) if set(s.robust) - {"fisher"} else Space(frozenset(fixed), 1.0)
        if not space.spread > 0:
            raise UnsupportedError(f"`{s.robust[-1]}` needs an x that varies, to be of its size: leave it out")
        moved = estimator.settings.symmetry
        if moved and moved.by == "augmentation":
            prior: Any = estimator.prior
            self.changes.append(Augmentation(declared_symmetry(prior, estimator.observables, moved), prior, seed))
        if s.noise:
            self.changes.append(Noise(s.noise, space, seed))
        if s.adversarial:
            self.changes.append(Adversarial(s.adversarial, space, seed))
        if s.trades:
            self.terms.append(Trades(s.trades, estimator.core, space, seed))
        self.fisher = FisherPenalty(s.fisher, estimator.core, seed) if s.fisher else None
        if self.fisher:
            self.terms.append(self.fisher)

    @property
    def plain(self) -> bool:
        """Whether it is the estimator's own loss."""
        return not (self.changes or self.terms)

    def losses(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member rows"]:
        """Of the data that are learned from."""
        for change in self.changes:
            batch = change(estimator, batch, step)
        return estimator.member_losses(batch)

    def added(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"] | float:
        """What the terms add in a step of training."""
        found = (term(estimator.core, estimator.for_core(batch), step) for term in self.terms)
        return sum((extra for extra in found if extra is not None), 0.0)

    def validate(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        """The validation loss of each member."""
        losses = self.losses(estimator, batch, step).mean(1).float()
        found = (term.validate(estimator.core, estimator.for_core(batch), step) for term in self.terms)
        return sum(found, losses)

    def state_dict(self) -> dict[str, Any]:
        """What a training must have to go on as if it had not been interrupted."""
        average = self.fisher.average if self.fisher else None
        return {"fisher": average.state_dict()} if average else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        if self.fisher and self.fisher.average:
            self.fisher.average.load_state_dict(state["fisher"])

    def finish(self, estimator: Estimator, held_out: Iterable[Batch]) -> dict[str, Any]:
        """What is to be known of the trained estimator."""
        rows = map(estimator.for_core, held_out)
        return {"fisher": self.fisher.finish(estimator.core, rows)} if self.fisher else {}

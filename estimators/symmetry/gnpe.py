r"""Group-equivariant neural posterior estimation: what is known by symmetry is not learned.

Two densities are trained in one go. The main one sees data from a blurred pose :math:`\hat g = g_\theta \varepsilon`, and learns
what is left,

.. math:: \min_\phi -\mathbb{E}\, \log q_\phi(\theta' | x'), \quad \theta' = \hat g^{-1} \theta, \quad x' = T_{\hat g^{-1}} x, \quad
    \varepsilon \sim \kappa,

without :math:`\hat g` where the symmetry is exact, with it where it is not (`blur`). The start, :math:`q(g | x)`, is a density of
the pose alone, where Gibbs chains begin (`gibbs`). Dax et al., "Group equivariant neural posterior estimation" (ICLR
2022), https://arxiv.org/abs/2111.13139.

The start sees every row moved to another pose in every step, drawn from the prior (`augment`): under the symmetry that is as good
as simulations without end, and chains must not begin where the main density has never looked from.

The blur is a function of a seed that is kept with the weights, of the step, and of theta: training that is resumed sees what it
would have seen, and validation, which knows no step, the same in every epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...data.batch import Batch
from ...data.errors import ShapeError, UnsupportedError
from ...data.variables import Variables
from ...simulators.prior import Prior
from ..base import Estimator
from ..direct import DirectEstimator, log_prob
from ..noise import combine, key_of_rows
from ..settings import EstimatorSettings
from .augment import augmented, movement
from .blur import build_blur
from .invariance import advice
from .parts import Build, Mapped, under
from .view import PROXY

if TYPE_CHECKING:
    from .posterior import GNPEPosterior

logger = logging.getLogger("simfer.estimators.symmetry")

_MAIN, _START = "main.", "start."
_VIEWS = 8


class GNPE(Estimator):
    """A density relative to a blurred pose, and one of the pose.

    Args:
        prior: Of theta.
        observables: What x consists of.
        settings: With ``symmetry``; the rest is that of both densities.
        build: Makes an estimator without symmetry.
        seed: Of the initial weights and of the blur.

    Raises:
        SymmetryError: A symmetry that does not fit.
        UnsupportedError: A method that has no density of theta.
    """

    def __init__(
        self, prior: Prior, observables: Variables, settings: EstimatorSettings, build: Build, seed: int = 0
    ) -> None:
        nn.Module.__init__(self)
        assert settings.symmetry is not None
        self.prior, self.observables, self.settings = prior, observables, settings
        self.blur = build_blur(prior, observables, settings.symmetry)
        plain = settings.model_copy(update={"symmetry": None})
        told = (*settings.context, *((PROXY,) if self.blur.view.told else ()))  # no error of the data moves a proxy
        seen = plain.model_copy(update={"context": told})
        self.main: Any = build(self.blur.relative_prior(), self.blur.view.seen, seen, seed)
        self.start: Any = build(self.blur.pose_prior(), observables, plain, seed)
        if not isinstance(self.main, DirectEstimator):
            raise UnsupportedError(
                f"`symmetry` needs a density of theta given x; `{settings.method}` has none: use npe"
            )
        self.members = self.main.members
        self.seed: Tensor
        self.step: Tensor
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def core(self) -> Estimator:
        main: Estimator = self.main
        return main

    @property
    def transforms(self) -> dict[str, str]:
        return self.main.transforms

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        if told := advice(self.blur):
            logger.warning("%s", told)
        self.main.fit_preprocess(Mapped(portions, self.for_core))
        self.start.fit_preprocess(Mapped(portions, self._poses))

    def for_core(self, batch: Batch) -> Batch:
        """Rows as the main density sees them, blurred anew in every step of training."""
        return self.blur.rows(batch, self._keys(batch))

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        return self.member_losses(batch).mean(0)

    def member_losses(self, batch: Batch) -> Float[Tensor, "member rows"]:
        """Of both densities, which share no weight."""
        if self.training:
            self.step.add_(1)
        return self.main.member_losses(self.for_core(batch)) + self.start.member_losses(self._poses(batch))

    def take_better(self, best: dict[str, Tensor], now: dict[str, Tensor], better: Sequence[bool]) -> dict[str, Tensor]:
        if not best:
            return now
        chosen = {name: values for name, values in now.items() if not name.startswith((_MAIN, _START))}
        for part, prefix in ((self.main, _MAIN), (self.start, _START)):
            taken = part.take_better(under(prefix, best), under(prefix, now), better)
            chosen |= {prefix + name: values for name, values in taken.items()}
        return chosen

    def finish(self, held_out: Iterable[Batch]) -> dict[str, Any]:
        self.start.finish(Mapped(held_out, self._poses))
        return self.main.finish(Mapped(held_out, self.for_core))

    def as_sbi(self) -> nn.Module:
        raise UnsupportedError(
            "a network with `symmetry` is asked through chains and has no density that sbi could take"
        )

    def posterior(self, prior: Prior) -> GNPEPosterior:
        from .posterior import GNPEPosterior

        if prior != self.prior:
            raise ShapeError(
                f"`prior` must be the one the simulations were drawn from, {self.prior}; got {prior}: it cannot be changed"
            )
        return GNPEPosterior(self)

    @torch.no_grad()
    def first_poses(self, x: dict[str, Tensor], draws: int) -> Float[Tensor, "draw rows element"]:
        """Where chains begin: draws of the start, weighted by what it says of them when the data are moved.

        The weight is the geometric mean of the densities of a pose as seen from several places, over that of the draw: what
        the start believes from one place only is dropped.
        """
        symmetry, observations = self.blur.view.symmetry, len(next(iter(x.values())))
        theta = self._with_pose(self._draw(self.start, x, draws))
        own = self._log_start(theta, x)
        views = [own]
        for view in range(_VIEWS):
            keys = combine(self.seed, torch.full_like(self.seed, view)).expand(observations)
            h = movement(symmetry, self.prior, theta[0], keys)
            there = symmetry.act_theta(h.repeat(draws, 1), theta.flatten(0, 1)).view_as(theta)
            seen = self._log_start(there, symmetry.act_x(h, x))
            views.append(seen.where(self.prior.contains(there), own))
        weights = (torch.stack(views).mean(0) - own).softmax(0)
        picked = torch.multinomial(weights.T, draws, replacement=True).T
        chosen = theta.gather(0, picked[..., None].expand_as(theta))
        return symmetry.pose(chosen.flatten(0, 1)).unflatten(0, (draws, observations))

    @torch.no_grad()
    def draw(self, x: dict[str, Tensor], proxy: Float[Tensor, "rows element"]) -> Float[Tensor, "rows parameter"]:
        """One draw of theta from q(theta | x, proxy) for each row; not all lie in the prior's support."""
        relative = self._draw(self.main, self.blur.view.standardise(x, proxy), 1)[0]
        return self.blur.view.absolute(relative, proxy)

    @torch.no_grad()
    def log_prob(
        self, theta: Float[Tensor, "rows parameter"], x: dict[str, Tensor], proxy: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows"]:
        """log q(theta | x, proxy), over all of the group: the prior's support is not looked at."""
        context = self.main.condition(self.blur.view.standardise(x, proxy))
        return log_prob(self.main, self.blur.view.relative(theta, proxy), context) + self.blur.view.log_det(
            theta, proxy
        )

    def _poses(self, batch: Batch) -> Batch:
        moved = augmented(self.blur.view.symmetry, self.prior, batch, self._keys(batch)) if self.training else batch
        return Batch(moved.theta[:, self.blur.view.columns], moved.x)

    def _keys(self, batch: Batch) -> Int[Tensor, "rows"]:
        """One for each row, another in every step of training."""
        step = self.step if self.training else torch.zeros_like(self.step)
        return combine(key_of_rows(batch.theta), combine(self.seed, step))

    def placed(self, poses: Float[Tensor, "draw rows element"]) -> Float[Tensor, "draw rows parameter"]:
        """Parameters with these poses; the others are those of the prior's middle."""
        flat = poses.flatten(0, 1)
        return self.blur.view.symmetry.place(self._middle(flat.shape[:1], flat), flat).unflatten(0, poses.shape[:2])

    def _with_pose(self, pose: Float[Tensor, "draw rows pose"]) -> Float[Tensor, "draw rows parameter"]:
        columns = torch.tensor(self.blur.view.columns, device=pose.device)
        return self._middle(pose.shape[:-1], pose).index_copy(-1, columns, pose)

    def _middle(self, shape: torch.Size, like: Tensor) -> Float[Tensor, "*shape parameter"]:
        return self.prior.from_unconstrained(like.new_zeros(*shape, self.prior.dim))

    def _log_start(self, theta: Float[Tensor, "draw rows parameter"], x: dict[str, Tensor]) -> Tensor:
        return log_prob(self.start, theta[..., self.blur.view.columns], self.start.condition(x))

    def _draw(self, estimator: Any, x: dict[str, Tensor], draws: int) -> Tensor:
        z = estimator.density(estimator.condition(x)).sample((draws,))
        return estimator.prior.from_unconstrained(z)

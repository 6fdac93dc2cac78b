r"""Canonicalisation: x is brought to the pose that it has itself, and a plain density learned there.

.. math:: \hat g = \hat g(x), \quad x' = T_{\hat g^{-1}} x, \quad \theta' = \hat g^{-1} \theta, \qquad
    \log q(\theta | x) = \log q_\phi(\theta' | x') + \log \left| \frac{\partial \theta'}{\partial \theta} \right|

with a function that moves along with x, :math:`\hat g(T_g x) = g\, \hat g(x)` (`finders`). Then x' is the same for all poses of x, and q is
equivariant and normalised whatever :math:`\phi` is: one step, no chains. How far :math:`\hat g` is off the pose of theta is learned with
the rest; where noise hides the pose there is much of that, which proxies (`gnpe`) take out as well. Kaba et al., "Equivariance with
learned canonicalization functions" (2023), https://arxiv.org/abs/2211.06489.

q lives on all of the group, where the prior may end: its posterior is `restricted` to the prior's support.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import LogNormal, Normal

from ...data.batch import Batch
from ...data.errors import ShapeError, SymmetryError, UnsupportedError
from ...data.variables import Variables
from ...simulators.prior import Prior
from ..base import Estimator
from ..direct import DirectEstimator
from ..mixture import strata
from ..settings import EstimatorSettings, SymmetrySettings
from .base import LieGroup, Symmetry
from .charts import Charts, Kind
from .finders import build_finder
from .parts import Build, Mapped, under
from .product import Product
from .so3 import SO3
from .view import PROXY, View, declared_symmetry, entry, require_alone, told

if TYPE_CHECKING:
    from .restricted import RestrictedPosterior

_MAIN = "main."
_ROWS = 4096  # of the prior, to see what moves along
_WIDER = 10  # than the prior: coordinates of a normal end at 25 of its sd
_TURN = 2 * np.pi
_LEARNED_FROM = 2000  # rows that poses are learned from


class Canonical(Estimator):
    """A density relative to the pose that x has.

    Args:
        prior: Of theta.
        observables: What x consists of.
        settings: With ``symmetry``; the rest is that of the density.
        build: Makes an estimator without symmetry.
        seed: Of the initial weights.

    Attributes:
        prior: Of theta on all of the group, which the density is normalised over; ``given`` is that of the simulations.

    Raises:
        SymmetryError: A symmetry that does not fit, or a group without a canonical pose on these data.
        UnsupportedError: A method that has no density of theta.
    """

    def __init__(
        self, prior: Prior, observables: Variables, settings: EstimatorSettings, build: Build, seed: int = 0
    ) -> None:
        nn.Module.__init__(self)
        assert settings.symmetry is not None
        self.given, self.observables, self.settings = prior, observables, settings
        self.finder: Any
        self.view, self.finder = build_canonical(prior, observables, settings.symmetry)
        _require_all_there(settings)
        kinds = _kinds(self.view)
        self.prior, unit = _laws(self.view, kinds)
        self.charts = Charts({k: _of_pose(kind) if k in self.view.columns else kind for k, kind in kinds.items()})
        plain = settings.model_copy(update={"symmetry": None})
        kept = [name for name in settings.context if name not in self.view.hidden]
        seen = plain.model_copy(update={"context": (*kept, *((PROXY,) if self.view.told else ()))})
        self.main: Any = build(unit, self.view.seen, seen, seed)
        if not isinstance(self.main, DirectEstimator):
            raise UnsupportedError(
                f"`symmetry` needs a density of theta given x; `{settings.method}` has none: use npe"
            )
        self.unit, self.members = unit, self.main.members

    @property
    def core(self) -> Estimator:
        main: Estimator = self.main
        return main

    @property
    def transforms(self) -> dict[str, str]:
        return self.main.transforms

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        self.finder.fit(_first(portions))
        self.charts.fit(self.view.relative(batch.theta, self.finder(batch.x)) for batch in portions)
        self.main.fit_preprocess(Mapped(portions, self.for_core))

    def for_core(self, batch: Batch) -> Batch:
        """Rows as the density sees them."""
        pose = self.finder(batch.x)
        return Batch(self.charts(self.view.relative(batch.theta, pose)), self.view.standardise(batch.x, pose))

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        return self.main.loss(self.for_core(batch))

    def member_losses(self, batch: Batch) -> Float[Tensor, "member rows"]:
        return self.main.member_losses(self.for_core(batch))

    def take_better(self, best: dict[str, Tensor], now: dict[str, Tensor], better: Sequence[bool]) -> dict[str, Tensor]:
        if not best:
            return now
        taken = self.main.take_better(under(_MAIN, best), under(_MAIN, now), better)
        return now | {_MAIN + name: values for name, values in taken.items()}

    def finish(self, held_out: Iterable[Batch]) -> dict[str, Any]:
        return self.main.finish(Mapped(held_out, self.for_core))

    def condition(self, x: dict[str, Tensor]) -> Float[Tensor, "rows context"]:
        """What the density is conditioned on: x as seen from its pose, and the pose, float64."""
        pose = self.finder(x)
        return torch.cat([self.main.condition(self.view.standardise(x, pose)).double(), pose], 1)

    def density(self, context: Float[Tensor, "rows context"]) -> MovedDensity:
        """q(z | x), over all of the group."""
        size = self.view.symmetry.group.dim
        return MovedDensity(self, self.main.density(context[:, :-size].float()), context[:, -size:])

    def posterior(self, prior: Prior) -> RestrictedPosterior:
        from .restricted import RestrictedPosterior

        if prior != self.given:
            raise ShapeError(
                f"`prior` must be the one the simulations were drawn from, {self.given}; got {prior}: it cannot be changed"
            )
        return RestrictedPosterior(self)


class MovedDensity:
    """A density of theta' as one of theta, both in the unconstrained spaces of their priors; what posteriors ask of one.

    Args:
        canonical: Knows how to get from one to the other.
        density: Of theta'.
        pose: That theta' is relative to.
    """

    def __init__(self, canonical: Canonical, density: Any, pose: Float[Tensor, "rows element"]) -> None:
        self._canonical, self._density, self._pose = canonical, density, pose
        self.has_rsample: bool = density.has_rsample
        self.batch_shape, self.event_shape = pose.shape[:1], torch.Size([canonical.prior.dim])

    def log_prob(self, z: Float[Tensor, "*sample rows parameter"]) -> Float[Tensor, "*sample rows"]:
        c = self._canonical
        theta = c.prior.from_unconstrained(z.double())
        flat, pose = theta.reshape(-1, theta.shape[-1]), self._poses(theta)
        relative = c.view.relative(flat, pose)
        log_det = c.view.log_det(flat, pose) + c.charts.log_det(relative)
        unit = c.charts(relative).reshape(theta.shape)
        own = c.unit.to_unconstrained(unit)
        found = self._density.log_prob(own.float()).double() + c.unit.log_abs_det(unit, own)
        return found + log_det.reshape(found.shape) - c.prior.log_abs_det(theta, z.double())

    def sample(self, shape: Sequence[int] = ()) -> Float[Tensor, "*sample rows parameter"]:
        return self._moved(self._density.sample(torch.Size(shape)))

    def rsample(self, shape: Sequence[int] = ()) -> Float[Tensor, "*sample rows parameter"]:
        return self._moved(self._density.rsample(torch.Size(shape)))

    def stratified(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws of every component of a mixture, and the logarithms of their weights."""
        z, log_weights = strata(self._density, sample_shape)
        return self._moved(z.movedim(-2, 0)).movedim(0, -2), log_weights

    def _moved(self, own: Float[Tensor, "*sample rows parameter"]) -> Float[Tensor, "*sample rows parameter"]:
        c = self._canonical
        unit = c.unit.from_unconstrained(own)
        flat = c.charts.inverse(unit.reshape(-1, unit.shape[-1]))
        return c.prior.to_unconstrained(c.view.absolute(flat, self._poses(unit)).reshape(unit.shape))

    def _poses(self, theta: Float[Tensor, "*sample rows parameter"]) -> Float[Tensor, "all element"]:
        return self._pose.expand(*theta.shape[:-1], -1).reshape(-1, self._pose.shape[-1])


def build_canonical(prior: Prior, observables: Variables, settings: SymmetrySettings) -> tuple[View, nn.Module]:
    """The symmetry that a simulator has declared, and what finds the pose of x.

    Raises:
        SymmetryError: No declaration, one that does not fit, or a group without a canonical pose on these data.
        UnknownNameError: ``canonical`` names nothing that is known.
    """
    symmetry = declared_symmetry(prior, observables, settings)
    _require_one_element_each(symmetry.group)
    finder = build_finder(prior, observables, symmetry, settings)
    hidden = (settings.canonical,) if isinstance(settings.canonical, str) else ()
    if len(hidden) == len(observables):
        raise SymmetryError(f"`canonical: {settings.canonical}` is all there is of x: nothing is left to learn from")
    view = View(prior, observables, symmetry, told(symmetry.group, settings), hidden)
    _kinds(view)
    return view, finder


def _require_all_there(settings: EstimatorSettings) -> None:
    masks = [network.mask for network in settings.embedding.networks() if network.mask]
    if masks and settings.symmetry and settings.symmetry.canonical is None:
        raise SymmetryError(
            f"`mask: {masks[0]}` says that parts of x may not be there, which the canonical poses that are known here would "
            "count: give a function as `canonical`, or use `by: proxies`"
        )


def _require_one_element_each(group: LieGroup) -> None:
    factors = group.factors.values() if isinstance(group, Product) else [group]
    if any(isinstance(factor, SO3) for factor in factors):
        raise SymmetryError(
            "rotations of space have no coordinates that cover them once, which a density relative to a pose needs: use "
            "`by: proxies`"
        )


def _kinds(view: View) -> dict[int, Kind]:
    """Column of theta → what the group does to it, for all that it moves.

    Raises:
        SymmetryError: An angle whose prior is not one turn; a parameter that the prior ties to others.
    """
    symmetry, prior = view.symmetry, view.prior
    theta = torch.from_numpy(prior.sample(_ROWS, np.random.default_rng(0)))
    pose = symmetry.pose(theta)
    g = symmetry.group.compose(pose[:1], symmetry.group.inverse(pose[1:2])).expand(_ROWS, -1)
    moved = (symmetry.act_theta(g, theta) != theta).any(0)
    angles = [k for k in _true(moved) if _comes_round(symmetry, theta, g, k)]
    for column in angles:
        _require_turn(prior, column)
    for name in (prior.names[k] for k in range(prior.dim) if moved[k] and k not in view.columns):
        require_alone(name, prior.to_json()[name])
    return {k: "circle" if k in angles else "factor" if view.scaled(theta, g, k) else "line" for k in _true(moved)}


def _comes_round(symmetry: Symmetry, theta: Tensor, g: Tensor, column: int) -> bool:
    """Whether a parameter is an angle, which is the same a full turn further."""
    further = theta.clone()
    further[:, column] += _TURN
    return torch.allclose(symmetry.act_theta(g, further), symmetry.act_theta(g, theta), atol=1e-9)


def _of_pose(kind: Kind) -> Kind:
    """Theta' has coordinates of the group in its place: of a factor the logarithm."""
    return "circle" if kind == "circle" else "line"


def _laws(view: View, kinds: dict[int, Kind]) -> tuple[Prior, Prior]:
    """A law of theta over all of the group, and one of its charts: they give the coordinates of the densities."""
    prior = view.prior
    drawn = torch.from_numpy(prior.sample(_ROWS, np.random.default_rng(0)))
    described = prior.to_json()
    wide: dict[str, Any] = {name: described[name] for name in prior.names}
    unit = dict(wide)
    for k, kind in kinds.items():
        name, column = prior.names[k], drawn[:, k]
        if kind == "line":
            wide[name] = entry(Normal(float(column.mean()), _WIDER * float(column.std())))
        if kind == "factor":
            wide[name] = entry(LogNormal(float(column.log().mean()), _WIDER * float(column.log().std())))
        unit[name] = entry(Normal(0.0, 1.0))
    return Prior.from_json(wide), Prior.from_json(unit)


def _require_turn(prior: Prior, column: int) -> None:
    variable = prior.variables[prior.names[column]]
    require_alone(variable.name, prior.to_json()[variable.name])
    low, high = variable.support.low, variable.support.high
    if not abs(high - low - _TURN) < 1e-6:
        raise SymmetryError(
            f"the prior of the angle `{variable.name}` must span one turn, 2π, for a canonical pose; got [{low:.4g}, "
            f"{high:.4g}]: use `by: proxies`"
        )


def _true(flags: Tensor) -> list[int]:
    return [int(k) for k in flags.nonzero()[:, 0]]


def _first(portions: Iterable[Batch]) -> Batch:
    """Some rows."""
    found: list[Batch] = []
    for batch in portions:
        found.append(batch.select(slice(_LEARNED_FROM - sum(b.rows for b in found))))
        if sum(b.rows for b in found) >= _LEARNED_FROM:
            break
    x = {name: torch.cat([b.x[name] for b in found]) for name in found[0].x}
    return Batch(torch.cat([b.theta for b in found]), x)

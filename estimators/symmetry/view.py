r"""Theta and x as seen from a pose, and back: what is learned where a symmetry is taken out.

From a pose :math:`\hat g` the network is given :math:`x' = T_{\hat g^{-1}} x` and learns :math:`\theta' = \hat g^{-1} \theta`, in which the
pose is what is left of it, :math:`\hat g^{-1} g_\theta`, as coordinates v about the identity. Parameters that move along are those of
:math:`\hat g^{-1} \theta`; the others stay as they are. The density of theta is

.. math:: \log q(\theta | x, \hat g) = \log q(\theta' | x'[, \hat g])
    + \log \left| \frac{\partial \hat g^{-1} \theta}{\partial \theta} \right| + \log \left| \frac{\partial v}{\partial (\hat g^{-1} \theta)} \right|.

Dax et al. (ICLR 2022), https://arxiv.org/abs/2111.13139.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.errors import SymmetryError, did_you_mean
from ...data.variables import REAL, Variable, Variables
from ...simulators.prior import Prior
from ...simulators.symmetry import NamedSymmetry
from ..settings import SymmetrySettings
from .base import LieGroup, Symmetry
from .build import build_symmetry
from .own import own_symmetry
from .product import Product

PROXY = "pose_proxy"
_SAME = 1e-6  # relative, of factors


@dataclass(frozen=True, slots=True)
class View:
    """A symmetry, and what a network is shown from a pose.

    Args:
        prior: Of theta.
        observables: What x consists of.
        symmetry: Of theta and x.
        told: Coordinates of the pose that the network is given; none where the symmetry is exact.
        hidden: Observables that it is not given.
    """

    prior: Prior
    observables: Variables
    symmetry: Symmetry
    told: tuple[int, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def columns(self) -> list[int]:
        """Where in theta the pose is."""
        return [self.prior.names.index(name) for name in self.symmetry.parameters]

    @property
    def seen(self) -> Variables:
        """What the network is given: x, of any sign, and the pose where it is told."""
        shown = [v for v in self.observables if v.name not in self.hidden]
        moved = [v if v.support.integer else replace(v, support=REAL) for v in shown]
        width = sum(2 if self.symmetry.group.circular[k] else 1 for k in self.told)
        return Variables([*moved, Variable(PROXY, (width,))] if self.told else moved)

    def standardise(self, x: dict[str, Tensor], pose: Float[Tensor, "rows element"]) -> dict[str, Tensor]:
        """x as seen from the pose, and the pose where the network is told."""
        moved = self.symmetry.act_x(self.symmetry.group.inverse(pose), x)
        shown = {name: values for name, values in moved.items() if name not in self.hidden}
        return shown | {PROXY: self._features(pose).float()} if self.told else shown

    def relative(
        self, theta: Float[Tensor, "rows parameter"], pose: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        """theta'."""
        back = self.symmetry.act_theta(self.symmetry.group.inverse(pose), theta)
        v = self.symmetry.group.coordinates(self.symmetry.pose(back))
        return put(back, self.columns, v)

    def absolute(
        self, relative: Float[Tensor, "rows parameter"], pose: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        """theta, from theta'."""
        element = self.symmetry.group.element(relative[:, self.columns])
        return self.symmetry.act_theta(pose, self.symmetry.place(relative, element))

    def log_det(
        self, theta: Float[Tensor, "rows parameter"], pose: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows"]:
        """log |d theta' / d theta|."""
        inverse = self.symmetry.group.inverse(pose)
        back = self.symmetry.act_theta(inverse, theta)
        return self.symmetry.log_det_theta(inverse, theta) + self._log_det_coordinates(back)

    def scaled(self, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"], column: int) -> bool:
        """Whether g, the same in all rows, multiplies a parameter that is positive: by the same factor whatever it is."""
        factor = self.symmetry.act_theta(g, theta)[:, column] / theta[:, column]
        return bool((theta[:, column] > 0).all()) and float(factor.std() / factor.mean()) < _SAME

    def _features(self, pose: Tensor) -> Tensor:
        """Coordinates of the pose; of an angle its cosine and sine."""
        v = self.symmetry.group.coordinates(pose)
        circular = self.symmetry.group.circular
        parts = [part for k in self.told for part in ((v[:, k].cos(), v[:, k].sin()) if circular[k] else (v[:, k],))]
        return torch.stack(parts, 1)

    def _log_det_coordinates(self, back: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows"]:
        """log |d v / d theta_pose|, by differentiation: a pose may be coordinates, factors or what else a user has."""
        v, pull, *_ = torch.func.vjp(lambda given: self.symmetry.group.coordinates(self.symmetry.pose(given)), back)
        rows = [pull(unit.expand_as(v))[0] for unit in torch.eye(v.shape[1]).to(v)]
        return torch.stack(rows, 1)[:, :, self.columns].slogdet().logabsdet


def declared_symmetry(prior: Prior, observables: Variables, settings: SymmetrySettings) -> Symmetry:
    """The symmetry that a simulator has declared, or that the settings name.

    Raises:
        SymmetryError: There is none, or one that does not fit.
    """
    if not settings.declared:
        raise SymmetryError(
            "needs a simulator that declares a symmetry, in an attribute `symmetry`, or `declared=` in Python: see docs/equivariance.md"
        )
    if isinstance(settings.declared, str | NamedSymmetry):
        return own_symmetry(prior, observables, settings.declared)
    return build_symmetry(prior, observables, settings.declared)


def told(group: LieGroup, settings: SymmetrySettings) -> tuple[int, ...]:
    """Coordinates of the components that are not exact.

    Raises:
        SymmetryError: A component that there is not.
    """
    if isinstance(settings.exact, bool):
        return () if settings.exact else tuple(range(group.freedom))
    factors: Mapping[str, LieGroup] = group.factors if isinstance(group, Product) else {}
    for name in settings.exact:
        if name not in factors:
            raise SymmetryError(f"`exact`: no component `{name}`; {did_you_mean(name, factors)}")
    names = [name for name, factor in factors.items() for _ in range(factor.freedom)]
    return tuple(k for k, name in enumerate(names) if name not in settings.exact)


def entry(law: Any) -> dict[str, Any]:
    """A law as a prior describes that of a parameter."""
    (described,) = Prior({"a": law}).to_json().values()
    return described


def require_alone(name: str, described: Mapping[str, Any]) -> None:
    """Refuse what moves along and has no prior of its own.

    Raises:
        SymmetryError: The prior ties it to others.
    """
    if described.get("joint"):
        raise SymmetryError(
            f"the prior ties `{name}` to {', '.join(described['joint'])}: what moves along needs a prior of its own"
        )


def put(theta: Tensor, columns: list[int], values: Tensor) -> Tensor:
    """The same rows with other values in some columns."""
    return theta.index_copy(1, torch.tensor(columns, device=theta.device), values.to(theta))

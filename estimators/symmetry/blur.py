r"""From theta and x to what a group-equivariant network sees: both relative to a blurred pose.

With a proxy :math:`\hat g = g_\theta \varepsilon` the network is given :math:`x' = T_{\hat g^{-1}} x` and learns
:math:`\theta' = \hat g^{-1} \theta`, in which the pose is what is left of it, :math:`\varepsilon^{-1}`, as coordinates v about the
identity. Parameters that move along are those of :math:`\hat g^{-1} \theta`; the others stay as they are. The density of theta is

.. math:: \log q(\theta | x, \hat g) = \log q(\theta' | x'[, \hat g])
    + \log \left| \frac{\partial \hat g^{-1} \theta}{\partial \theta} \right| + \log \left| \frac{\partial v}{\partial (\hat g^{-1} \theta)} \right|.

Dax et al. (ICLR 2022), https://arxiv.org/abs/2111.13139.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import LogNormal, Normal, Uniform

from ...data.batch import Batch
from ...data.errors import SymmetryError, did_you_mean
from ...data.variables import REAL, Variable, Variables
from ...simulators.prior import Prior
from ...simulators.symmetry import NamedSymmetry
from ..noise import uniform
from ..settings import SymmetrySettings
from .base import LieGroup, Symmetry
from .build import build_symmetry
from .kernels import CoordinateKernel, normal_kernel, uniform_kernel
from .own import own_symmetry
from .product import Product

PROXY = "pose_proxy"
_ROWS = 4096  # of the prior, to see how wide what is relative to a proxy lies
_SAME = 1e-6  # relative, of factors


@dataclass(frozen=True, slots=True)
class Blur:
    """A symmetry, the kernel that blurs its pose, and whether the network is told of the proxy.

    Args:
        prior: Of theta.
        observables: What x consists of.
        symmetry: Of theta and x.
        kernel: Of the proxies.
        told: Coordinates of the proxy that the network is given; none where the symmetry is exact.
    """

    prior: Prior
    observables: Variables
    symmetry: Symmetry
    kernel: CoordinateKernel
    told: tuple[int, ...] = ()

    @property
    def columns(self) -> list[int]:
        """Where in theta the pose is."""
        return [self.prior.names.index(name) for name in self.symmetry.parameters]

    @property
    def seen(self) -> Variables:
        """What the network is given: x, of any sign, and the proxy where it is told."""
        moved = [v if v.support.integer else replace(v, support=REAL) for v in self.observables]
        width = sum(2 if self.symmetry.group.circular[k] else 1 for k in self.told)
        return Variables([*moved, Variable(PROXY, (width,))] if self.told else moved)

    def epsilon(self, key: Int[Tensor, "rows"]) -> Float[Tensor, "rows element"]:
        """A draw of the kernel that is a function of a key."""
        law = self.kernel.law_on(key.device)
        return self.symmetry.group.element(law.base_dist.icdf(uniform(key, self.symmetry.group.freedom)))

    def proxy(self, theta: Float[Tensor, "rows parameter"], eps: Float[Tensor, "rows element"]) -> Tensor:
        """The pose of theta, blurred from the right."""
        return self.symmetry.group.compose(self.symmetry.pose(theta), eps)

    def standardise(self, x: dict[str, Tensor], proxy: Float[Tensor, "rows element"]) -> dict[str, Tensor]:
        """x as seen from the proxy, and the proxy where the network is told."""
        moved = self.symmetry.act_x(self.symmetry.group.inverse(proxy), x)
        return moved | {PROXY: self._features(proxy).float()} if self.told else moved

    def relative(
        self, theta: Float[Tensor, "rows parameter"], proxy: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        """theta'."""
        back = self.symmetry.act_theta(self.symmetry.group.inverse(proxy), theta)
        v = self.symmetry.group.coordinates(self.symmetry.pose(back))
        return _put(back, self.columns, v)

    def absolute(
        self, relative: Float[Tensor, "rows parameter"], proxy: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        """theta, from theta'."""
        element = self.symmetry.group.element(relative[:, self.columns])
        return self.symmetry.act_theta(proxy, self.symmetry.place(relative, element))

    def log_det(
        self, theta: Float[Tensor, "rows parameter"], proxy: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows"]:
        """log |d theta' / d theta|."""
        inverse = self.symmetry.group.inverse(proxy)
        back = self.symmetry.act_theta(inverse, theta)
        return self.symmetry.log_det_theta(inverse, theta) + self._log_det_coordinates(back)

    def rows(self, batch: Batch, key: Int[Tensor, "rows"]) -> Batch:
        """Training rows as the network sees them, with proxies that are functions of keys."""
        proxy = self.proxy(batch.theta, self.epsilon(key))
        return Batch(self.relative(batch.theta, proxy), self.standardise(batch.x, proxy))

    def relative_prior(self) -> Prior:
        """A law of theta' over all that it can be: it gives the coordinates in which the density is learned."""
        rng = np.random.default_rng(0)
        theta = torch.from_numpy(self.prior.sample(_ROWS, rng))
        key = torch.from_numpy(rng.integers(2**62, size=_ROWS))
        drawn = self.relative(theta, self.proxy(theta, self.epsilon(key)))
        described = self.prior.to_json()
        laws: dict[str, Any] = {name: described[name] for name in self.prior.names}
        for k, name in enumerate(self.prior.names):
            if name in self.symmetry.parameters:
                laws[name] = _entry(self._law_of_pose(self.symmetry.parameters.index(name), drawn[:, k]))
            elif not torch.equal(drawn[:, k], theta[:, k]):
                _require_alone(name, described[name])
                laws[name] = _entry(_fitted(drawn[:, k], positive=self._scaled(theta, k)))
        return Prior.from_json(laws)

    def pose_prior(self) -> Prior:
        """Of the parameters that carry the pose."""
        described = self.prior.to_json()
        return Prior.from_json({name: described[name] for name in self.symmetry.parameters})

    def _features(self, proxy: Tensor) -> Tensor:
        """Coordinates of the proxy; of an angle its cosine and sine."""
        v = self.symmetry.group.coordinates(proxy)
        circular = self.symmetry.group.circular
        parts = [part for k in self.told for part in ((v[:, k].cos(), v[:, k].sin()) if circular[k] else (v[:, k],))]
        return torch.stack(parts, 1)

    def _log_det_coordinates(self, back: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows"]:
        """log |d v / d theta_pose|, by differentiation: a pose may be coordinates, factors or what else a user has."""
        with torch.inference_mode(False), torch.enable_grad():
            given = back.detach().clone().requires_grad_()
            v = self.symmetry.group.coordinates(self.symmetry.pose(given))
            rows = [torch.autograd.grad(part.sum(), given, retain_graph=True)[0] for part in v.unbind(1)]
        return torch.stack(rows, 1)[:, :, self.columns].slogdet().logabsdet

    def _law_of_pose(self, coordinate: int, drawn: Float[Tensor, "rows"]) -> Any:
        law = self.kernel.law.base_dist  # type: ignore[attr-defined]
        if isinstance(law, Uniform) and float(drawn.abs().max()) <= float(law.high[coordinate]) * (1 + 1e-9):
            return Uniform(law.low[coordinate] * (1 + 1e-6), law.high[coordinate] * (1 + 1e-6))
        return Normal(0.0, float(drawn.std()))

    def _scaled(self, theta: Float[Tensor, "rows parameter"], column: int) -> bool:
        """Whether the group multiplies a parameter that is positive: by the same factor whatever it is."""
        group = self.symmetry.group
        g = group.element(self.kernel.law.stddev.expand(len(theta), -1))
        factor = self.symmetry.act_theta(g, theta)[:, column] / theta[:, column]
        return bool((theta[:, column] > 0).all()) and float(factor.std() / factor.mean()) < _SAME


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


def build_blur(prior: Prior, observables: Variables, settings: SymmetrySettings) -> Blur:
    """The symmetry that a simulator has declared, blurred as asked for.

    Raises:
        SymmetryError: No declaration; widths of components that there are not.
    """
    symmetry = declared_symmetry(prior, observables, settings)
    assert settings.kernel is not None
    make = uniform_kernel if settings.law == "uniform" else normal_kernel
    kernel = make(symmetry.group, settings.kernel)
    return Blur(prior, observables, symmetry, kernel, _told(symmetry.group, settings))


def _told(group: LieGroup, settings: SymmetrySettings) -> tuple[int, ...]:
    """Coordinates of the components that are not exact."""
    if isinstance(settings.exact, bool):
        return () if settings.exact else tuple(range(group.freedom))
    factors: Mapping[str, LieGroup] = group.factors if isinstance(group, Product) else {}
    for name in settings.exact:
        if name not in factors:
            raise SymmetryError(f"`exact`: no component `{name}`; {did_you_mean(name, factors)}")
    names = [name for name, factor in factors.items() for _ in range(factor.freedom)]
    return tuple(k for k, name in enumerate(names) if name not in settings.exact)


def _fitted(drawn: Float[Tensor, "rows"], *, positive: bool) -> Any:
    if positive:
        return LogNormal(float(drawn.log().mean()), float(drawn.log().std()))
    return Normal(float(drawn.mean()), float(drawn.std()))


def _entry(law: Any) -> dict[str, Any]:
    (described,) = Prior({"a": law}).to_json().values()
    return described


def _require_alone(name: str, described: Mapping[str, Any]) -> None:
    if described.get("joint"):
        raise SymmetryError(
            f"the prior ties `{name}` to {', '.join(described['joint'])}: what moves along needs a prior of its own"
        )


def _put(theta: Tensor, columns: list[int], values: Tensor) -> Tensor:
    return theta.index_copy(1, torch.tensor(columns, device=theta.device), values.to(theta))

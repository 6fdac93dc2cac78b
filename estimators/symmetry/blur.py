r"""Blurred poses: what a group-equivariant network looks from (`view`).

A proxy is :math:`\hat g = g_\theta \varepsilon`, from which the pose that is left is :math:`\varepsilon^{-1}`, whatever theta is. Dax et al.
(ICLR 2022), https://arxiv.org/abs/2111.13139.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import LogNormal, Normal, Uniform

from ...data.batch import Batch
from ...data.variables import Variables
from ...simulators.prior import Prior
from ..noise import uniform
from ..settings import SymmetrySettings
from .kernels import CoordinateKernel, normal_kernel, uniform_kernel
from .view import View, declared_symmetry, entry, require_alone, told

_ROWS = 4096  # of the prior, to see how wide what is relative to a proxy lies


@dataclass(frozen=True, slots=True)
class Blur:
    """What a network is shown from a pose, and the kernel that blurs poses.

    Args:
        view: Of theta and x.
        kernel: Of the proxies.
    """

    view: View
    kernel: CoordinateKernel

    def epsilon(self, key: Int[Tensor, "rows"]) -> Float[Tensor, "rows element"]:
        """A draw of the kernel that is a function of a key."""
        group, law = self.view.symmetry.group, self.kernel.law_on(key.device)
        return group.element(law.base_dist.icdf(uniform(key, group.freedom)))

    def proxy(self, theta: Float[Tensor, "rows parameter"], eps: Float[Tensor, "rows element"]) -> Tensor:
        """The pose of theta, blurred from the right."""
        return self.view.symmetry.group.compose(self.view.symmetry.pose(theta), eps)

    def rows(self, batch: Batch, key: Int[Tensor, "rows"]) -> Batch:
        """theta' and x' of rows, from proxies that are functions of keys."""
        proxy = self.proxy(batch.theta, self.epsilon(key))
        return Batch(self.view.relative(batch.theta, proxy), self.view.standardise(batch.x, proxy))

    def relative_prior(self) -> Prior:
        """A law of theta' over all that it can be: it gives the coordinates in which the density is learned."""
        rng, prior, symmetry = np.random.default_rng(0), self.view.prior, self.view.symmetry
        theta = torch.from_numpy(prior.sample(_ROWS, rng))
        key = torch.from_numpy(rng.integers(2**62, size=_ROWS))
        drawn = self.view.relative(theta, self.proxy(theta, self.epsilon(key)))
        g = symmetry.group.element(self.kernel.law.stddev.expand(_ROWS, -1))
        described = prior.to_json()
        laws: dict[str, Any] = {name: described[name] for name in prior.names}
        for k, name in enumerate(prior.names):
            if name in symmetry.parameters:
                laws[name] = entry(self._law_of_pose(symmetry.parameters.index(name), drawn[:, k]))
            elif not torch.equal(drawn[:, k], theta[:, k]):
                require_alone(name, described[name])
                laws[name] = entry(_fitted(drawn[:, k], positive=self.view.scaled(theta, g, k)))
        return Prior.from_json(laws)

    def pose_prior(self) -> Prior:
        """Of the parameters that carry the pose."""
        described = self.view.prior.to_json()
        return Prior.from_json({name: described[name] for name in self.view.symmetry.parameters})

    def _law_of_pose(self, coordinate: int, drawn: Float[Tensor, "rows"]) -> Any:
        law = self.kernel.law.base_dist  # type: ignore[attr-defined]
        if isinstance(law, Uniform) and float(drawn.abs().max()) <= float(law.high[coordinate]) * (1 + 1e-9):
            return Uniform(law.low[coordinate] * (1 + 1e-6), law.high[coordinate] * (1 + 1e-6))
        return Normal(0.0, float(drawn.std()))


def build_blur(prior: Prior, observables: Variables, settings: SymmetrySettings) -> Blur:
    """The symmetry that a simulator has declared, blurred as asked for.

    Raises:
        SymmetryError: No declaration; widths of components that there are not.
    """
    symmetry = declared_symmetry(prior, observables, settings)
    assert settings.kernel is not None
    make = uniform_kernel if settings.law == "uniform" else normal_kernel
    kernel = make(symmetry.group, settings.kernel)
    return Blur(View(prior, observables, symmetry, told(symmetry.group, settings)), kernel)


def _fitted(drawn: Float[Tensor, "rows"], *, positive: bool) -> Any:
    if positive:
        return LogNormal(float(drawn.log().mean()), float(drawn.log().std()))
    return Normal(float(drawn.mean()), float(drawn.std()))

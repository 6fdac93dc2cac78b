r"""Mixtures, with draws that can be differentiated.

.. math:: q(z) = \sum_k w_k q_k(z), \qquad
    \nabla \mathbb{E}_q f = \nabla \sum_k w_k \, \mathbb{E}_{\epsilon} f(g_k(\epsilon))

where :math:`g_k(\epsilon)` are the reparametrised draws of component k. To differentiate a draw of a component picked at
random forgets the gradient of the weights; there are two ways to keep it. `stratified` gives a draw of every component
and the weights: right to all orders, with little variance, for mixtures of anything. `GaussianMixture.rsample` moves plain
draws as their Rosenblatt transform demands (implicit reparametrisation: Graves 2016, https://arxiv.org/abs/1607.05690;
Figurnov et al. 2018, https://arxiv.org/abs/1805.08498): where components lie far apart, few draws have very large
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import zuko
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints

from ..data.errors import ShapeError, UnsupportedError

Shape = Sequence[int]


@runtime_checkable
class Stratified(Protocol):
    """A density that gives draws of all its components."""

    def stratified(
        self, sample_shape: Shape = ()
    ) -> tuple[Float[Tensor, "*draws component feature"], Float[Tensor, "*batch component"]]:
        """Draws of every component, ``(*sample_shape, *batch, component, feature)``, and the logarithms of the weights."""


def strata(
    density: Any, sample_shape: Shape = ()
) -> tuple[Float[Tensor, "*draws component feature"], Float[Tensor, "*batch component"]]:
    """`Stratified.stratified` for any density: one that is no mixture is its only component.

    The expectation of f is ``(log_weights.exp() * f(draws)).sum(-1).mean(0)``, and so are its derivatives.
    """
    if isinstance(density, Stratified):
        return density.stratified(sample_shape)
    draws = density.rsample(torch.Size(sample_shape))
    return draws.unsqueeze(-2), draws.new_zeros((*density.batch_shape, 1))


class Mixture(Distribution):
    """A mixture of arbitrary densities, such as an ensemble.

    It has `rsample` where all components have and the weights are constants, as those of an ensemble.

    Args:
        components: Densities of the same batch and event shape, at least one.
        log_weights: Logarithms of the weights, up to a constant; one number each, or a row of these per batch entry.

    Raises:
        ShapeError: Weights that are not one per component.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, components: Sequence[Any], log_weights: Float[Tensor, "*batch component"]) -> None:
        if log_weights.shape[-1] != len(components) or not components:
            raise ShapeError(
                f"`log_weights` must have one number per component, {len(components)}, in its last axis; "
                f"got shape {tuple(log_weights.shape)}"
            )
        self.components, self.log_weights = tuple(components), log_weights.log_softmax(-1)
        self.has_rsample = not log_weights.requires_grad and all(part.has_rsample for part in components)
        super().__init__(components[0].batch_shape, components[0].event_shape, validate_args=False)

    def log_prob(self, value: Float[Tensor, "*draws feature"]) -> Float[Tensor, "*both"]:
        parts = torch.stack([component.log_prob(value) for component in self.components], -1)
        return (parts + self.log_weights).logsumexp(-1)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*draws feature"]:
        with torch.no_grad():
            return self._picked(torch.Size(sample_shape), [component.sample for component in self.components])

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*draws feature"]:
        """Draws like those of `sample`, differentiable.

        Raises:
            UnsupportedError: The weights need a gradient too, or a component has no `rsample`.
        """
        if not self.has_rsample:
            raise UnsupportedError(
                "`rsample` of a mixture needs weights that are constants and components that have it: use `stratified`, "
                "whose weights are differentiable"
            )
        return self._picked(torch.Size(sample_shape), [component.rsample for component in self.components])

    def rsample_and_log_prob(
        self, sample_shape: Shape = ()
    ) -> tuple[Float[Tensor, "*draws feature"], Float[Tensor, "*draws"]]:
        """Draws and the log density of each."""
        draws = self.rsample(sample_shape)
        return draws, self.log_prob(draws)

    def stratified(
        self, sample_shape: Shape = ()
    ) -> tuple[Float[Tensor, "*draws component feature"], Float[Tensor, "*batch component"]]:
        """As the contract `Stratified` says; of components that are mixtures, their components."""
        parts = [strata(component, sample_shape) for component in self.components]
        log_weights = [own[..., None] + inner for own, (_, inner) in zip(self._rows(), parts, strict=True)]
        return torch.cat([draws for draws, _ in parts], -2), torch.cat(log_weights, -1)

    def _rows(self) -> tuple[Tensor, ...]:
        return self.log_weights.expand(*self.batch_shape, -1).unbind(-1)

    def _picked(self, shape: torch.Size, draw: Sequence[Any]) -> Tensor:
        """A draw of a component picked at random for each: of every component, only as many as the row that needs most."""
        count, rows = shape.numel(), self.batch_shape.numel()
        weights = self.log_weights.expand(*self.batch_shape, -1).reshape(rows, -1)
        picked = Categorical(logits=weights).sample((count,))
        result = weights.new_zeros(count, rows, self.event_shape.numel())
        for k, of_component in enumerate(draw):
            mask = picked == k
            place, most = mask.cumsum(0) - 1, int(mask.sum(0).max()) if mask.numel() else 0
            if most:
                drawn = of_component(torch.Size([most])).reshape(most, rows, -1)
                index = place.clamp(min=0)[..., None].expand_as(result)
                result = torch.where(mask[..., None], drawn.gather(0, index), result)
        return result.reshape(*shape, *self.batch_shape, *self.event_shape)


class GaussianMixture(zuko.distributions.Mixture):  # type: ignore[misc]
    """zuko's mixture of multivariate normals, with draws that can be differentiated.

    Args:
        density: As `zuko.mixtures.GMM` gives it.
    """

    has_rsample = True

    def __init__(self, density: zuko.distributions.Mixture) -> None:
        super().__init__(density.base, density.logits)

    def rsample(self, shape: Shape = ()) -> Float[Tensor, "*draws feature"]:
        """Draws whose first, second and third derivatives are those of the inverse Rosenblatt transform."""
        drawn = self.sample(torch.Size(shape))
        return self._moved(drawn) if torch.is_grad_enabled() else drawn

    def rsample_and_log_prob(
        self, shape: Shape = ()
    ) -> tuple[Float[Tensor, "*draws feature"], Float[Tensor, "*draws"]]:
        """Draws and the log density of each."""
        draws = self.rsample(shape)
        return draws, self.log_prob(draws)

    def stratified(
        self, sample_shape: Shape = ()
    ) -> tuple[Float[Tensor, "*draws component feature"], Float[Tensor, "*batch component"]]:
        """As the contract `Stratified` says."""
        return self.base.rsample(torch.Size(sample_shape)), self.logits.log_softmax(-1)

    def _moved(self, drawn: Float[Tensor, "*draws feature"]) -> Float[Tensor, "*draws feature"]:
        """The same draws as functions of the mixture's parameters, feature by feature given the features before."""
        loc, scale, log_w = self.base.loc, self.base.scale_tril, self.logits
        standard, moved = drawn.new_zeros((*drawn.shape[:-1], loc.shape[-2], 0)), []
        for j, start in enumerate(drawn.unbind(-1)):
            mean = loc[..., j] + (scale[..., j, :j] * standard).sum(-1)
            sd = scale[..., j, j]
            moved.append(_followed(start, log_w.softmax(-1), mean, sd))
            residual = (moved[-1][..., None] - mean) / sd
            log_w = log_w - residual.square() / 2 - sd.log()
            standard = torch.cat([standard, residual[..., None]], -1)
        return torch.stack(moved, -1)


def _followed(
    start: Float[Tensor, "*draws"],
    weight: Float[Tensor, "*some component"],
    mean: Float[Tensor, "*draws component"],
    sd: Float[Tensor, "*batch component"],
) -> Float[Tensor, "*draws"]:
    """A draw of a mixture of normals as the implicit function that keeps its cdf.

    Newton's iteration from the draw itself, which is the solution: it changes no value, and two steps of it, each of which
    doubles the order to which derivatives are right, give the first three.
    """

    def residual(z: Tensor) -> Tensor:
        return (z[..., None] - mean) / sd

    level = (weight * torch.special.ndtr(residual(start))).sum(-1).detach()
    z = start
    for _ in range(2):
        scaled = residual(z)
        density = (weight / sd * torch.exp(-scaled.square() / 2)).sum(-1) / math.sqrt(2 * math.pi)
        z = z - ((weight * torch.special.ndtr(scaled)).sum(-1) - level) / density
    return z

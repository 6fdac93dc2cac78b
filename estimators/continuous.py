r"""Continuous flows: a standard normal carried along by a velocity field.

.. math:: \frac{dz_t}{dt} = v(z_t, t, c), \quad z_0 \sim N(0, I), \qquad
    \log q(z_1 | c) = \log N(z_0; 0, I) - \int_0^1 \nabla \cdot v(z_t, t, c) \, dt

Chen et al. (2018), https://arxiv.org/abs/1806.07366; Grathwohl et al. (2019), https://arxiv.org/abs/1810.01367.

Trajectories follow the classical Runge-Kutta method of fourth order and the integral Simpson's rule over the same steps,
so that the divergence is taken once in a step. Steps are uniform in

.. math:: u(t) = \log\frac{1 + \epsilon}{1 - t + \epsilon} \Big/ \log\frac{1 + \epsilon}{\epsilon}.

A field of flow matching that leads to a density of width s bends, and its divergence :math:`\approx -d / (1 - t)` ends,
where :math:`1 - t \approx s`; before, its trajectories are straight lines, on which Runge-Kutta is exact: a small
:math:`\epsilon` has short steps there. With a large one, for fields of no such shape, steps are nearly equal. All of it can
be differentiated as often as one likes: there is no adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import silu

from .noise import combine, normal

_ROWS_AT_ONCE = 2**13  # what stays in the cache of a CPU


@runtime_checkable
class Field(Protocol):
    """v(z, t, c), in two parts, so that what depends on t and c alone is not repeated for each of many z."""

    features: int
    epsilon: float

    @property
    def context(self) -> Callable[[Tensor], Tensor]:
        """Encodes c."""

    def conditions(self, encoded: Tensor, t: Tensor) -> list[Tensor]:
        """What `at` is to know of c, as encoded by ``context``, and of t, ``(*times, 1)``."""

    def at(self, z: Tensor, conditions: list[Tensor]) -> Tensor:
        """v(z) at the time and context that the conditions were made from."""

    def along(self, z: Tensor, conditions: list[Tensor], directions: Tensor) -> tuple[Tensor, Tensor]:
        """v(z), and its derivatives in given directions ``(direction, feature)`` as ``(direction, *draws, feature)``."""


class VelocityField(nn.Module):
    """v(z, t, c): a residual network whose blocks are scaled and shifted by what t and c say.

    Perez et al. (2018), https://arxiv.org/abs/1709.07871.

    Args:
        features: Numbers in z.
        context: Numbers in c.
        width: Of the hidden layers.
        blocks: How many.
        epsilon: Of the clock.
        frequencies: How many sines, and cosines, of the time u(t) the network sees; the higher the fainter.
    """

    def __init__(
        self, features: int, context: int, width: int, blocks: int, epsilon: float, frequencies: int = 8
    ) -> None:
        super().__init__()
        self.features, self.epsilon = features, epsilon
        self.state, self.context = nn.Linear(features, width), nn.Linear(context, width)
        self.time = nn.Linear(2 * frequencies, width)
        self.blocks: Sequence[_Block] = nn.ModuleList(_Block(width) for _ in range(blocks))  # type: ignore[assignment]
        self.out = nn.Linear(width, features)
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.arange(1.0, frequencies + 1), persistent=False)

    def forward(
        self, z: Float[Tensor, "*draws feature"], t: Float[Tensor, "*times 1"], context: Float[Tensor, "*rows context"]
    ) -> Float[Tensor, "*draws feature"]:
        return self.at(z, self.conditions(self.context(context), t))

    def conditions(
        self, encoded: Float[Tensor, "*rows width"], t: Float[Tensor, "*times 1"]
    ) -> list[Float[Tensor, "*both width2"]]:
        """What each block is told."""
        clock = torch.log((1 + self.epsilon) / (1 - t + self.epsilon)) / math.log((1 + self.epsilon) / self.epsilon)
        phase = math.pi * self.frequencies * clock
        waves = torch.cat([phase.cos() / self.frequencies, phase.sin() / self.frequencies], -1)
        summary = silu(encoded + self.time(waves))
        return [block.condition(summary) for block in self.blocks]

    def at(self, z: Float[Tensor, "*draws feature"], conditions: list[Tensor]) -> Float[Tensor, "*draws feature"]:
        h = self.state(z)
        for block, condition in zip(self.blocks, conditions, strict=True):
            h = block(h, condition)
        return self.out(h)

    def along(
        self,
        z: Float[Tensor, "*draws feature"],
        conditions: list[Tensor],
        directions: Float[Tensor, "direction feature"],
    ) -> tuple[Float[Tensor, "*draws feature"], Float[Tensor, "direction *draws feature"]]:
        h, dh = self.state(z), directions @ self.state.weight.T
        dh = dh.reshape(len(dh), *[1] * (z.dim() - 1), -1)
        for block, condition in zip(self.blocks, conditions, strict=True):
            h, dh = block.along(h, dh, condition)
        return self.out(h), dh @ self.out.weight.T


class _Block(nn.Module):
    """h + W2 silu((W1 h) (1 + scale) + shift), and its derivative: `torch.func.jvp` takes thirty times as long."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.condition = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = condition.chunk(2, -1)
        return h + self.second(silu(self.first(h) * (1 + scale) + shift))

    def along(self, h: Tensor, dh: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = condition.chunk(2, -1)
        inside = self.first(h) * (1 + scale) + shift
        gate = inside.sigmoid()
        slope = gate * (1 + inside * (1 - gate)) * (1 + scale)
        return h + self.second(inside * gate), dh + (dh @ self.first.weight.T * slope) @ self.second.weight.T


class ContinuousFlow(nn.Module):
    """A conditional density: c → the distribution that a velocity field makes of N(0, I).

    Args:
        features: Numbers in z.
        context: Numbers in c.
        width: Of the field's hidden layers.
        blocks: Of the field.
        steps: Of the solver, an even number.
        epsilon: Of the clock.
        probes: Directions in which the divergence is taken: all, exactly, where there are no more features; else
            Hutchinson's estimate from random orthogonal directions, new ones for every density while training, so that
            the network cannot adapt to them, and always the same ones afterwards.
    """

    def __init__(
        self, features: int, context: int, *, width: int, blocks: int, steps: int, epsilon: float, probes: int
    ) -> None:
        super().__init__()
        self.field = VelocityField(features, context, width, blocks, epsilon)
        self.steps, self.probes = steps, min(probes, features)
        self.count: Tensor
        if self.probes < features:
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, context: Float[Tensor, "*batch context"]) -> ContinuousDistribution:
        return ContinuousDistribution(self.field, context, self.steps, self._directions(context))

    def _directions(self, context: Tensor) -> Float[Tensor, "direction feature"]:
        features = self.field.features
        if self.probes == features:
            return torch.eye(features, dtype=context.dtype, device=context.device)
        if self.training:
            self.count.add_(1)
        key = self.count if self.training else torch.zeros_like(self.count)
        keys = combine(torch.arange(features, device=key.device), key)
        axes = torch.linalg.qr(normal(keys, self.probes)).Q
        return (axes * math.sqrt(features / self.probes)).T.to(context.dtype)


class ContinuousDistribution(Distribution):
    """What a velocity field makes of N(0, I) between t = 0 and t = 1.

    Args:
        field: The velocity field.
        context: What it is conditioned on; its leading axes are the batch.
        steps: Of the solver, an even number.
        directions: In which the divergence is taken: rows e with E[e eᵀ] summing to the identity.
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        field: Field,
        context: Float[Tensor, "*batch context"],
        steps: int,
        directions: Float[Tensor, "direction feature"],
    ) -> None:
        self.field, self.context, self.directions = field, context, directions
        self._times, self._weights = _clock(steps, field.epsilon)
        super().__init__(context.shape[:-1], torch.Size([field.features]), validate_args=False)

    def log_prob(self, value: Float[Tensor, "*draws feature"]) -> Float[Tensor, "*both"]:
        start, divergence = self._transport(value, forward=False, diverge=True)
        return _log_normal(start) - divergence

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*draws feature"]:
        return self._transport(self._start(sample_shape), forward=True, diverge=False)[0]

    def rsample_and_log_prob(
        self, sample_shape: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "*draws feature"], Float[Tensor, "*draws"]]:
        """Draws and the log density of each, in one pass."""
        start = self._start(sample_shape)
        end, divergence = self._transport(start, forward=True, diverge=True)
        return end, _log_normal(start) - divergence

    def _start(self, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.context.dtype, device=self.context.device)

    def _transport(self, z: Tensor, *, forward: bool, diverge: bool) -> tuple[Tensor, Tensor]:
        """z at the other end, and the integral of the divergence; in portions where no graph must be kept."""
        shape = torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        flat = z.expand(*shape, -1).reshape(-1, *self.batch_shape, self.field.features)
        many = len(flat) if torch.is_grad_enabled() else max(1, _ROWS_AT_ONCE // max(1, self.batch_shape.numel()))
        parts = [self._integrate(part, forward=forward, diverge=diverge) for part in flat.split(max(1, many))]
        end, divergence = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return end.reshape(*shape, -1), divergence.reshape(shape)

    def _integrate(self, z: Tensor, *, forward: bool, diverge: bool) -> tuple[Tensor, Tensor]:
        encoded, total = self.field.context(self.context), torch.zeros_like(z[..., 0])
        order = slice(None) if forward else slice(None, None, -1)
        times, weights = self._times[order], self._weights[order]
        here = self._conditions(encoded, times[0])
        for weight, (now, then) in zip(weights, pairwise(times), strict=False):
            middle, there = self._conditions(encoded, (now + then) / 2), self._conditions(encoded, then)
            velocity, divergence = self._velocity(z, here, diverge)
            z, total = self._step(z, velocity, then - now, middle, there), total + weight * divergence
            here = there
        if diverge:
            total = total + weights[-1] * self._velocity(z, here, diverge)[1]
        return z, total

    def _step(self, z: Tensor, first: Tensor, step: float, middle: list[Tensor], there: list[Tensor]) -> Tensor:
        second = self.field.at(z + step / 2 * first, middle)
        third = self.field.at(z + step / 2 * second, middle)
        fourth = self.field.at(z + step * third, there)
        return z + step / 6 * (first + 2 * second + 2 * third + fourth)

    def _conditions(self, encoded: Tensor, t: float) -> list[Tensor]:
        return self.field.conditions(encoded, encoded.new_tensor([t]))

    def _velocity(self, z: Tensor, conditions: list[Tensor], diverge: bool) -> tuple[Tensor, Tensor | float]:
        """v(z) and its divergence, the derivatives in all directions carried forward at once."""
        if not diverge:
            return self.field.at(z, conditions), 0.0
        velocity, slopes = self.field.along(z, conditions, self.directions)
        return velocity, torch.einsum("k...d,kd->...", slopes, self.directions)


def _clock(steps: int, epsilon: float) -> tuple[list[float], list[float]]:
    """Times of the solver, and the weights of the integrand at these: Simpson's, times dt / du."""
    span = math.log((1 + epsilon) / epsilon)
    left = [(1 + epsilon) * math.exp(-span * i / steps) for i in range(steps + 1)]
    simpson = [1 if i in (0, steps) else 2 + 2 * (i % 2) for i in range(steps + 1)]
    times = [1 + epsilon - value for value in left]
    return times, [span * value * factor / (3 * steps) for value, factor in zip(left, simpson, strict=True)]


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))

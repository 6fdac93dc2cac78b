"""Draws of autoregressive flows in one pass of their networks.

The inverse of :math:`y_i = f(x_i; h_i(x_{<i}, c))` needs :math:`x_{<i}` before :math:`x_i`. Taken literally that is a pass of the
hyper-network :math:`h` for every parameter (Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057). But a hidden unit of
a masked network (Germain et al. 2015, https://arxiv.org/abs/1502.03509) sees a known part of x alone, so that it can be
evaluated once, as soon as that part is there: units and features are sorted by the pass that first can evaluate them, and
every pass evaluates its own. What the context adds to the first layer is the same for all draws of an observation, and is
computed once for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.nn import MaskedLinear
from zuko.transforms import AutoregressiveTransform
from zuko.utils import unpack


class IncrementalTransform(MaskedAutoregressiveTransform):  # type: ignore[misc]
    """zuko's transformation with a faster inverse; a subclass, so that weights keep their names."""

    def __init__(self, features: int, context: int = 0, **given: object) -> None:
        super().__init__(features, context, **given)
        passes = self.order
        self.register_buffer("_sorted_features", passes.argsort(stable=True), persistent=False)
        self._ends = [_ends(passes, self.passes)]
        first = torch.cat([passes + 1, passes.new_zeros(context)])  # from which pass on an input is there
        for k, layer in enumerate(self._linear()):
            seen = torch.where(layer.mask, first, 0).amax(1)
            if k < len(self._linear()) - 1:
                self.register_buffer(f"_sorted_{k}", seen.argsort(stable=True), persistent=False)
                self._ends.append(_ends(seen, self.passes))
            first = seen

    @no_type_check  # `torch.compile` cannot trace what looks at shapes
    def forward(self, c: Float[Tensor, "... context"] | None = None) -> Transform:
        has_hidden_units = len(self._ends) > 1  # without, there is nothing to save
        return _Incremental(self, c) if has_hidden_units else super().forward(c)

    def inverse(
        self, y: Float[Tensor, "... feature"], c: Float[Tensor, "... context"] | None
    ) -> Float[Tensor, "... feature"]:
        """x of y."""
        layers, (weight, offset) = self._weights(c, y.dim() - 1)
        features, *ends = self._ends
        y, activations = y[..., self._sorted_features], _Activations(layers, ends, y.shape[:-1])
        found: list[Tensor] = []
        for k in range(self.passes):
            values = activations.after(k, found)
            here = slice(features[k], features[k + 1])
            phi = torch.tensordot(values, weight[here, :, : len(values)], ([0], [2])) + offset[here]
            univariate = self.univariate(*unpack(phi, self.shapes))
            found.extend(univariate.inv(y[..., here]).unbind(-1))
        return torch.stack(found, -1)[..., self._sorted_features.argsort()]

    def _linear(self) -> list[MaskedLinear]:
        return [layer for layer in self.hyper if isinstance(layer, MaskedLinear)]

    def _weights(self, c: Tensor | None, batch: int) -> tuple[list[_Layer], tuple[Tensor, Tensor]]:
        """Of hidden layers, for so many axes of the batch, and of the outputs, by feature: all sorted."""
        *hidden, last = self._linear()
        activations = [layer for layer in self.hyper if not isinstance(layer, MaskedLinear)]
        size = len(self._sorted_features)
        columns, layers = self._sorted_features, []
        for k, (layer, activation) in enumerate(zip(hidden, activations, strict=True)):
            rows = getattr(self, f"_sorted_{k}")
            weight, bias = (layer.mask * layer.weight)[rows], layer.bias[rows]
            if k == 0 and c is not None:
                bias = (c @ weight[:, size:].mT + bias).movedim(-1, 0)
            bias = bias.reshape(len(rows), *[1] * (batch + 1 - bias.dim()), *bias.shape[1:])
            layers.append(_Layer(weight[:, columns], bias, activation))
            columns = rows
        weight = (last.mask * last.weight)[:, columns].unflatten(0, (size, self.total))[self._sorted_features]
        return layers, (weight, last.bias.unflatten(0, (size, self.total))[self._sorted_features])


class _Layer(NamedTuple):
    weight: Float[Tensor, "unit input"]
    bias: Float[Tensor, "unit ..."]  # what the context adds is in that of the first layer
    activation: Callable[[Tensor], Tensor] | nn.Module


class _Activations:
    """Of all hidden layers, as far as they are known; units come first, so that those of the next pass are appended.

    Args:
        layers: Whose units are sorted.
        ends: Of each layer, where its passes begin and end.
        batch: Shape of what every unit has a value for.
    """

    def __init__(self, layers: list[_Layer], ends: list[list[int]], batch: torch.Size) -> None:
        self._layers, self._ends, self._batch = layers, ends, batch
        self._known: list[list[Tensor]] = [[] for _ in layers]

    def after(self, k: int, found: list[Tensor]) -> Float[Tensor, "unit ..."]:
        """Of the last layer, once pass k has been given the features found before."""
        values = torch.stack(found) if found else torch.empty(0)
        for layer, end, known in zip(self._layers, self._ends, self._known, strict=True):
            rows = slice(end[k], end[k + 1])
            sums = layer.bias[rows].expand(-1, *self._batch)
            if len(values):  # an empty product would fix the sizes of a program that is exported
                sums = sums + torch.tensordot(layer.weight[rows, : len(values)], values, 1)
            known.append(layer.activation(sums))
            values = torch.cat(known)
        return values


class _Incremental(AutoregressiveTransform):  # type: ignore[misc]
    """`IncrementalTransform` given its context."""

    @no_type_check
    def __init__(self, lazy: IncrementalTransform, c: Tensor | None) -> None:
        super().__init__(partial(lazy.meta, c), lazy.passes)
        self._lazy: IncrementalTransform = lazy
        self._given: Tensor | None = c

    def _inverse(self, y: Float[Tensor, "... feature"]) -> Float[Tensor, "... feature"]:
        return self._lazy.inverse(y, self._given)


def _ends(passes: Int[Tensor, " unit"], many: int) -> list[int]:
    """Where in the sorted units each pass begins, and where the last ends."""
    return [int((passes < k).sum()) for k in range(many + 1)]

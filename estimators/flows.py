"""Conditional densities by name, zuko's but for the continuous flow.

- ``nsf``: neural spline flow, autoregressive. Durkan et al. (2019), https://arxiv.org/abs/1906.04032.
- ``maf``: masked autoregressive flow. Papamakarios et al. (2017), https://arxiv.org/abs/1705.07057.
- ``coupling``: neural spline flow of coupling layers. Durkan et al. (2019).
- ``realnvp``: affine coupling layers. Dinh et al. (2017), https://arxiv.org/abs/1605.08803.
- ``cnf``: continuous flow (`continuous`).
- ``gmm``: mixture density network. Bishop (1994), https://publications.aston.ac.uk/id/eprint/373.

Autoregressive flows evaluate a density in one pass of each transformation's network, and so they draw (`autoregressive`), if
one parameter after another; coupling flows do both in one. Of a single parameter there is nothing to couple: zuko makes those
transformations elementwise, which is what the autoregressive ones are then, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import zuko
from torch import nn
from zuko.distributions import DiagNormal
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.lazy import Flow, UnconditionalDistribution
from zuko.transforms import MonotonicRQSTransform

from .autoregressive import IncrementalTransform
from .continuous import ContinuousFlow
from .mixture import GaussianMixture
from .settings import FlowSettings


def build_flow(settings: FlowSettings, features: int, context: int) -> nn.Module:
    """A density of ``features`` numbers given ``context`` numbers: a module that makes distributions of contexts."""
    return _BUILDERS[settings.kind](settings, features, context)


def coupling_masks(features: int, layers: int) -> list[list[bool]]:
    """Which features each coupling layer leaves as they are: digits of their binary index, then the others.

    After 2 ⌈log2 features⌉ layers any two features have seen each other. Gao, Isaacson & Krause (2020),
    https://arxiv.org/abs/2001.05486.
    """
    digits = max(1, (features - 1).bit_length())
    return [[((j >> (layer // 2 % digits)) & 1) == 1 - layer % 2 for j in range(features)] for layer in range(layers)]


def _nsf(settings: FlowSettings, features: int, context: int) -> nn.Module:
    return _autoregressive(settings, features, context, **_spline(settings))


def _maf(settings: FlowSettings, features: int, context: int) -> nn.Module:
    return _autoregressive(settings, features, context)


def _coupling(settings: FlowSettings, features: int, context: int) -> nn.Module:
    return _coupled(settings, features, context, **_spline(settings))


def _realnvp(settings: FlowSettings, features: int, context: int) -> nn.Module:
    return _coupled(settings, features, context)


def _cnf(settings: FlowSettings, features: int, context: int) -> nn.Module:
    return ContinuousFlow(
        features,
        context,
        width=settings.hidden[0],
        blocks=len(settings.hidden),
        steps=settings.steps,
        epsilon=1.0,
        probes=settings.probes,
    )


def _gmm(settings: FlowSettings, features: int, context: int) -> nn.Module:
    return _GMM(features, context, components=settings.components, hidden_features=settings.hidden, activation=nn.SiLU)


class _GMM(zuko.mixtures.GMM):  # type: ignore[misc]
    """zuko's, with draws that can be differentiated; a subclass, so that weights keep their names."""

    def forward(self, c: torch.Tensor | None = None) -> GaussianMixture:
        return GaussianMixture(super().forward(c))


def _spline(settings: FlowSettings) -> dict[str, Any]:
    bins = settings.bins
    return {
        "univariate": partial(MonotonicRQSTransform, bound=settings.bound),
        "shapes": [(bins,), (bins,), (bins - 1,)],
    }


def _autoregressive(settings: FlowSettings, features: int, context: int, **univariate: Any) -> nn.Module:
    """Features in ascending and descending order by turns."""
    ascending = torch.arange(features)
    layers = [
        IncrementalTransform(
            features,
            context,
            order=ascending.flip(0) if k % 2 else ascending,
            hidden_features=settings.hidden,
            activation=nn.SiLU,
            **univariate,
        )
        for k in range(settings.transforms)
    ]
    return _flow(layers, features)


def _coupled(settings: FlowSettings, features: int, context: int, **univariate: Any) -> nn.Module:
    layers = [
        GeneralCouplingTransform(
            features, context, mask=mask, hidden_features=settings.hidden, activation=nn.SiLU, **univariate
        )
        for mask in coupling_masks(features, settings.transforms)
    ]
    return _flow(layers, features)


def _flow(layers: list[Any], features: int) -> nn.Module:
    loc, scale = torch.zeros(features), torch.ones(features)
    return Flow(layers, UnconditionalDistribution(DiagNormal, loc=loc, scale=scale, buffer=True))


_BUILDERS: dict[str, Callable[[FlowSettings, int, int], nn.Module]] = {
    "nsf": _nsf,
    "maf": _maf,
    "coupling": _coupling,
    "realnvp": _realnvp,
    "cnf": _cnf,
    "gmm": _gmm,
}

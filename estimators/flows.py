"""Conditional densities from zuko, by name.

Neural spline flow: Durkan et al. (2019), https://arxiv.org/abs/1906.04032. Masked autoregressive flow: Papamakarios
et al. (2017), https://arxiv.org/abs/1705.07057. Mixture density network: Bishop (1994).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import zuko
from torch import nn
from zuko.flows.autoregressive import MAF
from zuko.lazy import LazyDistribution
from zuko.transforms import MonotonicRQSTransform

from .settings import FlowSettings


def build_flow(settings: FlowSettings, features: int, context: int) -> LazyDistribution:
    """A density of ``features`` numbers given ``context`` numbers."""
    return _BUILDERS[settings.kind](settings, features, context)


def _nsf(settings: FlowSettings, features: int, context: int) -> LazyDistribution:
    bins = settings.bins
    return MAF(
        features,
        context,
        transforms=settings.transforms,
        hidden_features=settings.hidden,
        activation=nn.SiLU,
        randperm=False,
        univariate=partial(MonotonicRQSTransform, bound=settings.bound),
        shapes=[(bins,), (bins,), (bins - 1,)],
    )


def _maf(settings: FlowSettings, features: int, context: int) -> LazyDistribution:
    return MAF(features, context, transforms=settings.transforms, hidden_features=settings.hidden, activation=nn.SiLU)


def _gmm(settings: FlowSettings, features: int, context: int) -> LazyDistribution:
    return zuko.mixtures.GMM(
        features, context, components=settings.components, hidden_features=settings.hidden, activation=nn.SiLU
    )


_BUILDERS: dict[str, Callable[[FlowSettings, int, int], LazyDistribution]] = {"nsf": _nsf, "maf": _maf, "gmm": _gmm}

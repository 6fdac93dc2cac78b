"""Networks that summarise x before the density sees it."""

from __future__ import annotations

import zuko.nn
from torch import nn

from .settings import EmbeddingSettings


def build_embedding(settings: EmbeddingSettings, features: int) -> tuple[nn.Module, int]:
    """A module ``(rows, features) → (rows, summaries)`` and its number of summaries."""
    if settings.kind == "none":
        return nn.Identity(), features
    mlp = zuko.nn.MLP(features, settings.features, hidden_features=settings.hidden, activation=nn.SiLU)
    return mlp, settings.features

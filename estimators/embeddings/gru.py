"""Recurrent network over a series: gated recurrent units. Cho et al. (2014), https://arxiv.org/abs/1406.1078."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings
from .base import as_steps, steps


class GRU(nn.Module):
    """``layers`` of ``width`` units; the summary is read off the state after the last step that is present."""

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features, self.settings = settings.features, settings
        inputs = steps(shape, settings)[1] + (settings.mask is not None)
        self.recurrent = nn.GRU(inputs, settings.width, settings.layers, batch_first=True)
        self.leave = nn.Linear(settings.width, settings.features)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        series = as_steps(x, self.settings)
        if present is None:
            return self.leave(self.recurrent(series)[0][:, -1])
        states, _ = self.recurrent(torch.cat([series, present[..., None].to(series)], -1))
        return self.leave(_at_the_last(states, present))


def _at_the_last(states: Float[Tensor, "rows step width"], present: Bool[Tensor, "rows step"]) -> Tensor:
    """The state after the last step that is present; 0 where there is none."""
    places = torch.arange(1, present.shape[1] + 1, device=present.device)
    last = (present * places).amax(1)
    state = states.gather(1, (last - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
    return state * (last > 0)[:, None]

r"""How much a prior prefers poses: the change of its log density where parameters are moved,

.. math:: \log p(g\theta) + \log |\det J_g| - \log p(\theta),

which is 0 of an invariant prior inside its support. A network that is not told where it looks from cannot know what the prior
prefers: its posterior is that of an invariant prior, off by the factor that the prior changes by over the posterior's width.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...simulators.prior import Prior
from .base import Symmetry
from .blur import Blur

_ROWS = 1000
_MUCH = 0.1  # of the log density, over a width of the kernel: a tenth of a standard deviation, where that is the posterior's width


def log_change(
    symmetry: Symmetry, prior: Prior, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"]
) -> Float[Tensor, "rows"]:
    """What the log density of theta changes by where g moves it; infinite beyond the support."""
    moved = symmetry.act_theta(g, theta)
    return prior.log_prob(moved) + symmetry.log_det_theta(g, theta) - prior.log_prob(theta)


def preference(blur: Blur) -> float:
    """Root mean square of the change over a draw of the kernel, in the coordinates that the network is not told."""
    group, rng = blur.view.symmetry.group, np.random.default_rng(0)
    theta = torch.from_numpy(blur.view.prior.sample(_ROWS, rng))
    v = group.coordinates(blur.epsilon(torch.from_numpy(rng.integers(2**62, size=_ROWS))))
    v[:, list(blur.view.told)] = 0.0
    pose = blur.view.symmetry.pose(theta)
    g = group.compose(group.compose(pose, group.element(v)), group.inverse(pose))  # g pose = pose epsilon
    change = log_change(blur.view.symmetry, blur.view.prior, theta, g)
    inside = change[change.isfinite()]
    return float(inside.square().mean().sqrt()) if len(inside) else 0.0


def advice(blur: Blur) -> str:
    """What to do about a prior that prefers poses; empty where that does not matter."""
    change = preference(blur)
    if change <= _MUCH:
        return ""
    moved = ", ".join(f"`{name}`" for name in blur.view.symmetry.parameters)
    return (
        f"the prior of {moved} is not invariant: over a width of the kernel its log density changes by {change:.2g} (rms), and a "
        "network with `exact: true` cannot know which poses it prefers: weight the draws (`refine: importance`), or train "
        "with `exact: false`"
    )

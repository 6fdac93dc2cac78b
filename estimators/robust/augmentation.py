r"""Training on perturbed data: noise, or the worst that there is in a ball.

``noise``: x is moved by a uniform draw of a ball; or, for models that miss rare large errors, entries are replaced with some
probability (spike) by draws of a Cauchy distribution around them, and moved a little otherwise (slab), as in noisy neural
posterior estimation, Ward et al. (2022), https://arxiv.org/abs/2210.06564. ``adversarial``: x is moved to where the loss of the
true theta is largest, :math:`\tilde x = \arg\max_{\|x' - x\| \le r} -\log q(\theta_{\mathrm{true}} | x')`.
Gloeckler, Deistler & Macke (2023), https://arxiv.org/abs/2305.14984, compare with both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.batch import Batch
from ..base import Estimator
from ..settings import AdversarialSettings, NoiseSettings
from .balls import ball
from .base import of_step
from .perturbations import Named, Space


class Noise:
    """Adds noise to x.

    Args:
        settings: Kind and size.
        space: Where x may go.
        seed: Of the draws, with the step.
    """

    def __init__(self, settings: NoiseSettings, space: Space, seed: int = 0) -> None:
        self.settings, self._space, self._seed = settings, space, seed

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Batch:
        chosen, space = self.settings, self._space
        with of_step(self._seed, step):
            if chosen.kind == "uniform":
                return batch._replace(x=space.uniform(batch.x, ball(chosen.norm), chosen.eps))
            noisy = _spiked(space.flat(batch.x), chosen.eps * space.spread, chosen.spikes)
        return batch._replace(x=space.named(noisy, batch.x))


class Adversarial:
    """Moves x to where the loss is largest.

    Args:
        settings: Size and search.
        space: Where x may go.
        seed: Of the starts, with the step.
    """

    def __init__(self, settings: AdversarialSettings, space: Space, seed: int = 0) -> None:
        self.settings, self._space, self._seed = settings, space, seed

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Batch:
        chosen = self.settings

        def loss(x: Named) -> Tensor:
            return estimator.member_losses(batch._replace(x=x)).mean(0)

        with of_step(self._seed, step):
            x = self._space.worst(loss, batch.x, ball(chosen.norm), chosen.eps, chosen.steps)
        return batch._replace(x=x)


def _spiked(x: Tensor, scale: float, probability: float) -> Tensor:
    spike = torch.rand_like(x) < probability
    cauchy = torch.empty_like(x).cauchy_(sigma=scale)
    return x + torch.where(spike, cauchy, 0.01 * scale * torch.randn_like(x))

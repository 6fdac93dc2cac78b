r"""The same random numbers at theta and at g theta: what is left when the noise has dropped out.

Where x is a signal plus noise that theta does not change, :math:`x(\theta; u) - x(\theta_0; u)` holds no noise, and neither do

.. math:: T_g x(\theta; u) - T_g x(\theta_0; u) \quad\text{and}\quad x(g\theta; u) - x(g\theta_0; u)

for T_g that is linear but for a displacement; these two are equal where the simulator is symmetric. In sd of the noise per entry the
difference has a length d: for white noise, T_g x and x at g theta differ by :math:`d^2 / 2` nats of KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .pairs import Data, Pairs, flat, minus, spread

Kind = Literal["none", "moving", "additive", "other"]

_SAME = 1e-3  # of the noise; a simulator in single precision rounds its sums


@dataclass(frozen=True, slots=True)
class SharedNoise:
    """Data that share their noise, twice.

    Attributes:
        kind: ``none``: x is a function of theta. ``moving``: the noise moves with theta, as where a factor scales all of x.
            ``additive``: differences hold no noise. ``other``: they do.
        x: At theta.
        again: At theta, with other noise.
        acted: T_g x, without noise.
        anew: x at g theta, without noise.
        partner: x at the partners, with the noise of ``x``.
        unit: What deviations are counted in: the sd of the noise in each entry, or where there is none of x.
    """

    kind: Kind
    x: Data
    again: Data
    acted: Data
    anew: Data
    partner: Data
    unit: dict[str, Tensor]

    def without_noise(self, x: Data, partner: Data) -> Data:
        """The signal in x, up to that of its partner."""
        return minus(x, partner) if self.kind == "additive" else x

    @property
    def deviation(self) -> Data:
        """T_g x against x at g theta, in ``unit``."""
        return {name: values / self.unit[name] for name, values in minus(self.acted, self.anew).items()}


def share_noise(pairs: Pairs) -> SharedNoise:
    """Take the noise out, if differences that share it come out the same with other random numbers."""
    x, again, partner = pairs.at("theta", 1), pairs.at("theta", 2), pairs.at("partner", 1)
    unit = _unit(x, again)
    acted, anew = pairs.act(pairs.g, x), pairs.at("moved", 1)
    if _largest(minus(x, again), spread(x)) == 0:
        return SharedNoise("none", x, again, acted, anew, partner, unit)
    if _largest(minus(acted, anew), unit) < _SAME:
        return SharedNoise("moving", x, again, acted, anew, partner, unit)
    acted, other_acted = (
        minus(pairs.act(pairs.g, pairs.at("theta", noise)), pairs.act(pairs.g, pairs.at("partner", noise)))
        for noise in (1, 2)
    )
    anew, other_anew = (minus(pairs.at("moved", noise), pairs.at("partner_moved", noise)) for noise in (1, 2))
    apart = max(_largest(minus(acted, other_acted), unit), _largest(minus(anew, other_anew), unit))
    return SharedNoise("additive" if apart < _SAME else "other", x, again, acted, anew, partner, unit)


def lengths(deviation: Data) -> Float[Tensor, "rows"]:
    """d of every row."""
    return flat(deviation).norm(dim=1)


def _unit(x: Data, again: Data) -> dict[str, Tensor]:
    noise = {name: (values - again[name]).square().mean(0).sqrt() / 2**0.5 for name, values in x.items()}
    return {name: torch.where(sd > 0, sd, spread(x)[name]) for name, sd in noise.items()}


def _largest(x: Data, unit: dict[str, Tensor]) -> float:
    return float(flat({name: values / unit[name] for name, values in x.items()}).abs().max())

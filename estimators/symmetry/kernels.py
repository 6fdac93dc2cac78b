r"""Kernels that blur poses: :math:`\varepsilon` normal or uniform in the coordinates of a group.

With density :math:`\kappa_v` in the coordinates, that with respect to the Haar measure is
:math:`\kappa(\varepsilon) = \sum_v \kappa_v(v)\, e^{-\mathrm{log\_haar}(v)}` over all coordinates v of :math:`\varepsilon`: those
of an angle differ by full turns. Dax et al. (ICLR 2022), section 3.2, blur by normal or uniform kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, Uniform

from ...data.errors import SymmetryError, did_you_mean
from .base import LieGroup
from .product import Product

Width = float | int | Sequence[float | int]


@dataclass(frozen=True, slots=True)
class CoordinateKernel:
    """A law of the coordinates, about 0.

    Args:
        group: Of the poses.
        law: Of the coordinates, with event shape ``(coordinate,)``.
    """

    group: LieGroup
    law: Distribution

    def sample(self, rows: int) -> Float[Tensor, "rows element"]:
        return self.group.element(self.law.sample((rows,)))

    def log_prob(self, eps: Float[Tensor, "rows element"]) -> Float[Tensor, "rows"]:
        turns, law = self.group.turns(self.group.coordinates(eps).double()), self.law_on(eps.device)
        densities = [law.log_prob(v) - self.group.log_haar(v) for v in turns]
        return torch.stack(densities).logsumexp(0)

    def law_on(self, device: torch.device) -> Any:
        """The law, with its parameters on a device."""
        base = self.law.base_dist  # type: ignore[attr-defined]
        moved = {name: getattr(base, name).to(device) for name in base.arg_constraints}
        return Independent(type(base)(**moved, validate_args=False), 1)


def normal_kernel(group: LieGroup, width: Width | Mapping[str, Width]) -> CoordinateKernel:
    """Independent normal coordinates.

    Args:
        group: Of the poses.
        width: Standard deviation, of all coordinates or one for each; of a product also component → that.

    Raises:
        SymmetryError: A width that is not above 0, or too many or too few.
    """
    widths = _widths(group, width)
    return CoordinateKernel(group, Independent(Normal(torch.zeros_like(widths), widths, validate_args=False), 1))


def uniform_kernel(group: LieGroup, width: Width | Mapping[str, Width]) -> CoordinateKernel:
    """Independent uniform coordinates.

    Args:
        group: Of the poses.
        width: Half the range, of all coordinates or one for each; of a product also component → that.

    Raises:
        SymmetryError: A width that is not above 0, or too many or too few.
    """
    widths = _widths(group, width)
    return CoordinateKernel(group, Independent(Uniform(-widths, widths, validate_args=False), 1))


def _widths(group: LieGroup, width: Width | Mapping[str, Width]) -> Float[Tensor, "coordinate"]:
    if isinstance(width, Mapping):
        return torch.cat([_widths(factor, width[name]) for name, factor in _factors(group, width).items()])
    given = torch.as_tensor(width, dtype=torch.float64)
    if given.ndim > 1 or (given.ndim and len(given) != group.freedom):
        raise SymmetryError(
            f"`width` of a kernel must be one number, or one for each of {group.freedom} coordinates; got {width}"
        )
    if not ((given > 0) & (given < math.inf)).all():
        raise SymmetryError(f"`width` of a kernel must be above 0 and finite; got {width}")
    return given.expand(group.freedom).clone()


def _factors(group: LieGroup, width: Mapping[str, Width]) -> Mapping[str, LieGroup]:
    factors = group.factors if isinstance(group, Product) else {}
    for name in width:
        if name not in factors:
            raise SymmetryError(f"`width` of a kernel: no component `{name}`; {did_you_mean(name, factors)}")
    if missing := [name for name in factors if name not in width]:
        raise SymmetryError(f"`width` of a kernel must name every component; missing: {', '.join(missing)}")
    return factors

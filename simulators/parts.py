r"""Parts of a prior: some of its parameters, their density and their share of the bijection to :math:`\mathbb{R}^d`.

`Marginals` and `JointNormal` turn the prior into N(0, I). `OwnLaw` does for a density with no known cdf what torch's
``biject_to`` does for its support, then centres and scales: there z has another distribution, of about unit width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from .families import Family, FromNormal, ToNormal, from_normal, from_tails, log_phi

Make = Callable[[torch.device], Distribution]


@runtime_checkable
class Part(Protocol):
    """Some parameters of a prior, independent of the others.

    Attributes:
        index: Which columns of theta they are.
        normal: Whether z ~ N(0, I) under the prior.
    """

    index: Tensor
    normal: bool

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of each parameter."""
        ...

    def contains(self, theta: Tensor) -> Tensor:
        """Whether theta lies in the support, shape ``(*batch,)``."""
        ...

    def log_prob(self, theta: Tensor) -> Tensor:
        """Joint log density, shape ``(*batch,)``; -inf outside the support."""
        ...

    def to_unconstrained(self, theta: Tensor) -> Tensor:
        """theta → z, both ``(*batch, parameter)``."""
        ...

    def from_unconstrained(self, z: Tensor) -> Tensor:
        """z → theta, inside the support."""
        ...

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        """log |dz / dtheta|, shape ``(*batch,)``; -inf outside the support."""
        ...

    def sample(self, rows: int) -> Tensor:
        """Draws from torch's global generator, ``(rows, parameter)``, float64; used where ``normal`` is false."""
        ...


class Marginals:
    """Independent parameters of one family as one distribution: a prior of 100 normals costs one call."""

    normal = True

    def __init__(self, family: Family, index: list[int], make: Make) -> None:
        self.index = torch.tensor(index)
        self._family, self._make = family, make
        self._made: dict[torch.device, tuple[Distribution, Tensor, Tensor]] = {}
        self._bounds = bounds(support_of(make(torch.device("cpu"))), len(index))

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self._bounds

    def contains(self, theta: Tensor) -> Tensor:
        return self._inside(theta).all(-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        distribution, low, high = self._on(theta.device)
        return torch.where(self._inside(theta), distribution.log_prob(theta.clamp(low, high)), -math.inf).sum(-1)

    def to_unconstrained(self, theta: Tensor) -> Tensor:
        distribution, low, high = self._on(theta.device)
        inside = theta.clamp(low, high)
        if not inside.requires_grad:  # `torch.func.vmap` takes no function with a derivative of its own
            return self._family.to_normal(distribution, inside)
        return ToNormal.apply(inside, self._family, distribution)

    def from_unconstrained(self, z: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # a program for torch alone holds values, not our rule for their derivative
            return from_normal(z, self._family, *self._on(z.device))
        return FromNormal.apply(z, self._family, *self._on(z.device))

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        return self.log_prob(theta) - log_phi(z).sum(-1)

    def sample(self, rows: int) -> Tensor:
        return self.from_unconstrained(torch.randn(rows, len(self.index), dtype=torch.float64))

    def _inside(self, theta: Tensor) -> Tensor:
        low, high = (bound.to(theta.device) for bound in self._bounds)
        return (theta >= low) & (theta <= high)

    def _on(self, device: torch.device) -> tuple[Distribution, Tensor, Tensor]:
        """The distribution and the open interior of its support, on a device."""
        if device not in self._made:
            low, high = (bound.to(device) for bound in self._bounds)
            self._made[device] = self._make(device), torch.nextafter(low, high), torch.nextafter(high, low)
        return self._made[device]


class JointNormal:
    """Several parameters under one multivariate normal: z = L^-1 (theta - loc) with L L^T the covariance."""

    normal = True

    def __init__(self, index: list[int], loc: Tensor, covariance: Tensor) -> None:
        self.index = torch.tensor(index)
        self._loc, self._factor = loc, torch.linalg.cholesky(covariance)
        self._log_volume = float(self._factor.diagonal().log().sum())

    def bounds(self) -> tuple[Tensor, Tensor]:
        return bounds(constraints.real, len(self.index))

    def contains(self, theta: Tensor) -> Tensor:
        return torch.isfinite(theta).all(-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        density = log_phi(self.to_unconstrained(theta)).sum(-1) - self._log_volume
        return torch.where(torch.isinf(theta).any(-1), -math.inf, density)

    def to_unconstrained(self, theta: Tensor) -> Tensor:
        centred = (theta - self._loc.to(theta)).unsqueeze(-1)
        return torch.linalg.solve_triangular(self._factor.to(theta), centred, upper=False).squeeze(-1)

    def from_unconstrained(self, z: Tensor) -> Tensor:
        return self._loc.to(z) + z @ self._factor.to(z).mT

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        return torch.zeros_like(theta[..., 0]) - self._log_volume

    def sample(self, rows: int) -> Tensor:
        return self.from_unconstrained(torch.randn(rows, len(self.index), dtype=torch.float64))


class OwnLaw:
    """One distribution without a cdf, of one parameter or of several together.

    Args:
        index: Which columns of theta.
        make: The distribution on a device.
        centre: Subtracted from the image under ``biject_to``, ``(parameter,)``.
        spread: What the rest is divided by, ``(parameter,)``.
    """

    normal = False

    def __init__(self, index: list[int], make: Make, centre: Tensor, spread: Tensor) -> None:
        self.index = torch.tensor(index)
        self._make, self._centre, self._spread = make, centre, spread
        self._made: dict[torch.device, Distribution] = {}
        self._bounds = bounds(support_of(make(torch.device("cpu"))), len(index))

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self._bounds

    def contains(self, theta: Tensor) -> Tensor:
        law = self._on(theta.device)
        inside: Tensor = support_of(law).check(_inner(law, theta))
        return inside & torch.isfinite(theta).all(-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        law, inside = self._on(theta.device), self.contains(theta)
        somewhere = torch.where(inside.unsqueeze(-1), theta, self.from_unconstrained(torch.zeros_like(theta)))
        return torch.where(inside, law.log_prob(_inner(law, somewhere)).double(), -math.inf)

    def to_unconstrained(self, theta: Tensor) -> Tensor:
        law = self._on(theta.device)
        raw = _outer(law, biject_to(support_of(law)).inv(_inner(law, self._clamped(theta))))
        return (raw - self._centre.to(raw)) / self._spread.to(raw)

    def from_unconstrained(self, z: Tensor) -> Tensor:
        law = self._on(z.device)
        raw = _inner(law, z * self._spread.to(z) + self._centre.to(z))
        return self._clamped(_outer(law, biject_to(support_of(law))(raw)))

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        law = self._on(theta.device)
        raw = _inner(law, z * self._spread.to(z) + self._centre.to(z))
        inverse = biject_to(support_of(law)).log_abs_det_jacobian(raw, _inner(law, theta))
        return torch.where(self.contains(theta), -inverse - self._spread.log().sum().to(z), -math.inf)

    def sample(self, rows: int) -> Tensor:
        law = self._on(torch.device("cpu"))
        return self._clamped(_outer(law, law.sample((rows,)).double()))

    def _clamped(self, theta: Tensor) -> Tensor:
        low, high = (bound.to(theta.device) for bound in self._bounds)
        return theta.clamp(torch.nextafter(low, high), torch.nextafter(high, low))

    def _on(self, device: torch.device) -> Distribution:
        if device not in self._made:
            self._made[device] = self._make(device)
        return self._made[device]


def standard(law: Distribution, draws: Tensor) -> tuple[list[float], list[float]]:
    """Median and quartile width, as of a normal's sd, of draws ``(rows, *event)`` in ``biject_to``'s coordinates."""
    raw = _outer(law, biject_to(support_of(law)).inv(draws.double())).numpy()
    low, middle, high = np.quantile(raw, [0.25, 0.5, 0.75], axis=0)
    width = (high - low) / 1.349
    return middle.tolist(), np.where(width > 0, width, 1.0).tolist()


def cdf_family(make: Callable[..., Distribution]) -> Family:
    """The family of a distribution that has ``cdf`` and ``icdf``; beyond 8.2 sd, where F rounds to 1, z stays there."""
    return Family(make, (), _to_by_cdf, _from_by_cdf)


def support_of(law: Distribution) -> Any:
    """Its support as a constraint; that of a mixture is its components', which ``biject_to`` knows."""
    support: Any = law.support
    return support.base_constraint if type(support).__name__ == "MixtureSameFamilyConstraint" else support


def bounds(support: Any, size: int) -> tuple[Tensor, Tensor]:
    """Least and largest value that a torch constraint names, each ``(size,)``."""
    support = getattr(support, "base_constraint", support)
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    least, most = (torch.as_tensor(bound, dtype=torch.float64).cpu().expand(size).clone() for bound in (low, high))
    return least, most


_LEAST = 2.0**-53  # 1 - this is the largest number below 1, halved


def _to_by_cdf(law: Distribution, theta: Tensor) -> Tensor:
    cdf = law.cdf(theta).to(theta)
    return from_tails(cdf.clamp(min=_LEAST), (1 - cdf).clamp(min=_LEAST))


def _from_by_cdf(law: Distribution, z: Tensor) -> Tensor:
    return law.icdf(torch.special.ndtr(z).clamp(_LEAST, 1 - _LEAST)).to(z)


def _inner(law: Distribution, values: Tensor) -> Tensor:
    """What the distribution takes: a scalar one has no axis of parameters."""
    return values if law.event_shape else values.squeeze(-1)


def _outer(law: Distribution, values: Tensor) -> Tensor:
    return values if law.event_shape else values.unsqueeze(-1)

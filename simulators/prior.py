r"""The prior: named, independent parameters, with a bijection to :math:`\mathbb{R}^d` under which it is N(0, I).

Flows live in that space: what they sample never leaves the support, and nothing is ever rejected. The density there
and here differ by :math:`\log q(\theta) = \log q(z) + \sum_i \log p(\theta_i) - \log \phi(z_i)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
    Transform,
    TransformedDistribution,
    constraints,
)

from ..data.errors import PriorError, ShapeError, did_you_mean
from ..data.variables import Support, Variable, Variables
from .families import FAMILIES, Family, FromNormal, ToNormal, _log_phi, why_not


class Prior:
    """Independent, named, univariate marginals.

    Args:
        marginals: Name of a parameter → a scalar ``torch.distributions`` object (or `TruncatedNormal`, `LogUniform`),
            or its form in YAML, such as ``{"dist": "Uniform", "low": 0, "high": 1}``.
        units: Name → units, for tables and figures.
        labels: Name → what figures print, such as ``"$\\beta$"``.

    Raises:
        PriorError: A marginal that is no distribution, has impossible arguments, or is of a kind that has no
            bijection to the real line.
    """

    def __init__(
        self,
        marginals: Mapping[str, Any],
        *,
        units: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        if not marginals:
            raise PriorError("`marginals` of a prior must name at least one parameter; got none")
        self._marginals = {name: _described(name, marginal) for name, marginal in marginals.items()}
        self._units, self._labels = dict(units or {}), dict(labels or {})
        self._groups = _groups(list(self._marginals.values()))
        self._order = torch.argsort(torch.cat([group.index for group in self._groups]))
        low, high = (torch.cat([g.bounds()[side] for g in self._groups])[self._order] for side in (0, 1))
        self._low, self._high = low, high

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._marginals)

    @property
    def dim(self) -> int:
        return len(self._marginals)

    @property
    def variables(self) -> Variables:
        """The parameters with their units, labels and support."""
        return Variables(
            Variable(
                name, units=self._units.get(name, ""), label=self._labels.get(name, ""), support=Support(low, high)
            )
            for name, low, high in zip(self.names, self._low.tolist(), self._high.tolist(), strict=True)
        )

    def sample(self, rows: int, rng: np.random.Generator) -> Float[np.ndarray, "rows parameter"]:
        """Independent draws, float64, a function of ``rng`` alone: the image of standard normal draws."""
        z = torch.from_numpy(rng.standard_normal((rows, self.dim)))
        return self.from_unconstrained(z).numpy()

    def draw(self, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The same draws by name, each ``(rows,)``: a prior is what a known nuisance is drawn from, too."""
        return dict(zip(self.names, self.sample(rows, rng).T.copy(), strict=True))

    def log_prob(self, theta: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch"]:
        """Log density; -inf outside the support."""
        theta = self._checked(theta)
        return self._gather([group.log_prob(theta[..., group.index]) for group in self._groups], theta).sum(-1)

    def contains(self, theta: Float[Tensor, "*batch parameter"]) -> Bool[Tensor, "*batch"]:
        """Whether theta lies in the support."""
        theta = self._checked(theta)
        return ((theta >= self._low.to(theta)) & (theta <= self._high.to(theta))).all(-1)

    def to_unconstrained(self, theta: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch parameter"]:
        """theta → z; under the prior z ~ N(0, I). theta outside the support goes to the nearest point inside."""
        theta = self._checked(theta)
        return self._gather([group.to_normal(theta[..., group.index]) for group in self._groups], theta)

    def from_unconstrained(self, z: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch parameter"]:
        """z → theta, strictly inside the support."""
        z = self._checked(z)
        return self._gather([group.from_normal(z[..., group.index]) for group in self._groups], z)

    def log_abs_det(
        self, theta: Float[Tensor, "*batch parameter"], z: Float[Tensor, "*batch parameter"]
    ) -> Float[Tensor, "*batch"]:
        """log |dz / dtheta|; -inf outside the support, so that any density built on it vanishes there."""
        return self.log_prob(theta) - _log_phi(z).sum(-1)

    @property
    def torch(self) -> Distribution:
        """The same prior as a torch distribution of float32 draws with event dimension 1, as sbi takes it."""
        base = Independent(Normal(torch.zeros(self.dim), torch.ones(self.dim)), 1)
        return TransformedDistribution(base, [_PriorTransform(self)], validate_args=False)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The form in YAML, complete: ``{name: {dist, arguments, units, label}}``."""
        return {
            name: {**marginal, "units": self._units.get(name, ""), "label": self._labels.get(name, "")}
            for name, marginal in self._marginals.items()
        }

    @classmethod
    def from_json(cls, described: Mapping[str, Mapping[str, Any]]) -> Prior:
        marginals = {
            name: {key: value for key, value in item.items() if key not in ("units", "label")}
            for name, item in described.items()
        }
        units = {name: str(item.get("units") or "") for name, item in described.items()}
        labels = {name: str(item.get("label") or "") for name, item in described.items()}
        return cls(marginals, units=units, labels=labels)

    def replace(self, overrides: Mapping[str, Mapping[str, Any]]) -> Prior:
        """The same prior with some marginals given anew, in their form in YAML; units and labels stay unless given.

        Raises:
            PriorError: A name that is no parameter, or a marginal that is impossible.
        """
        described = self.to_json()
        for name, item in overrides.items():
            if name not in described:
                raise PriorError(f"prior of `{name}`: no such parameter; {did_you_mean(name, described)}")
            kept = {key: described[name][key] for key in ("units", "label")}
            described[name] = {**kept, **item}
        return Prior.from_json(described)

    def __reduce__(self) -> tuple[Any, ...]:
        return Prior.from_json, (self.to_json(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prior) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={_formatted(marginal)}" for name, marginal in self._marginals.items())
        return f"Prior({inside})"

    def _checked(self, values: Tensor) -> Tensor:
        if values.shape[-1:] != (self.dim,):
            raise ShapeError(
                f"`theta` must have {self.dim} parameters ({', '.join(self.names)}) in its last axis; "
                f"got shape {tuple(values.shape)}"
            )
        return values.double()

    def _gather(self, parts: list[Tensor], like: Tensor) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)[..., self._order.to(like.device)]


class _Group:
    """The marginals of one family, as one distribution with a batch axis: a prior of 100 normals costs one call."""

    def __init__(self, family: Family, index: list[int], arguments: dict[str, list[float]]) -> None:
        self.family = family
        self.index = torch.tensor(index)
        self._arguments = {name: torch.tensor(values, dtype=torch.float64) for name, values in arguments.items()}
        self._made: dict[torch.device, tuple[Distribution, Tensor, Tensor]] = {}

    def bounds(self) -> tuple[Tensor, Tensor]:
        return _bounds(self.family.distribution(**self._arguments, validate_args=False).support, len(self.index))

    def to_normal(self, theta: Tensor) -> Tensor:
        distribution, low, high = self._on(theta.device)
        return ToNormal.apply(theta.clamp(low, high), self.family, distribution)

    def from_normal(self, z: Tensor) -> Tensor:
        return FromNormal.apply(z, self.family, *self._on(z.device))

    def log_prob(self, theta: Tensor) -> Tensor:
        distribution, low, high = self._on(theta.device)
        closed_low, closed_high = (bound.to(theta.device) for bound in self.bounds())
        inside = (theta >= closed_low) & (theta <= closed_high)
        return torch.where(inside, distribution.log_prob(theta.clamp(low, high)), -math.inf)

    def _on(self, device: torch.device) -> tuple[Distribution, Tensor, Tensor]:
        """The distribution and the open interior of its support, on a device."""
        if device not in self._made:
            arguments = {name: values.to(device) for name, values in self._arguments.items()}
            low, high = (bound.to(device) for bound in self.bounds())
            inside = torch.nextafter(low, high), torch.nextafter(high, low)
            self._made[device] = (self.family.distribution(**arguments, validate_args=False), *inside)
        return self._made[device]


class _PriorSupport(constraints.Constraint):
    """The support of a prior as torch writes constraints."""

    event_dim = 1

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.prior.contains(value)


class _PriorTransform(Transform):
    """z → theta as a torch transform."""

    bijective = True
    domain = constraints.real_vector

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    @property
    def codomain(self) -> _PriorSupport:  # type: ignore[override]
        return _PriorSupport(self.prior)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PriorTransform) and self.prior == other.prior

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return self.prior.from_unconstrained(x).to(x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.prior.to_unconstrained(y).to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.prior.log_abs_det(y, x.double()).to(x.dtype)


@torch.distributions.biject_to.register(_PriorSupport)  # type: ignore[untyped-decorator]
def _biject_to_prior(support: _PriorSupport) -> Transform:
    return _PriorTransform(support.prior)


def _described(name: str, marginal: Any) -> dict[str, Any]:
    """The checked form in YAML of one marginal."""
    item = dict(marginal) if isinstance(marginal, Mapping) else _from_torch(name, marginal)
    kind = item.pop("dist", None)
    if kind not in FAMILIES:
        reason = why_not(str(kind))
        hint = (
            f"`{kind}` cannot be used: {reason}"
            if reason
            else f"unknown `dist` {kind!r}; {did_you_mean(str(kind), FAMILIES)}"
        )
        raise PriorError(f"prior of `{name}`: {hint}")
    return {"dist": kind, **_checked_arguments(name, kind, item)}


def _checked_arguments(name: str, kind: str, item: dict[str, Any]) -> dict[str, float]:
    family = FAMILIES[kind]
    unknown = [key for key in item if key not in family.arguments]
    if unknown:
        raise PriorError(
            f"prior of `{name}`: {kind} has no `{unknown[0]}`; {did_you_mean(unknown[0], family.arguments)}"
        )
    try:
        arguments = {key: float(value) for key, value in item.items() if value is not None}
        made = family.distribution(
            **{key: torch.tensor(v, dtype=torch.float64) for key, v in arguments.items()}, validate_args=True
        )
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{key} = {value}" for key, value in item.items()) or "no arguments"
        raise PriorError(f"prior of `{name}`: {kind} cannot be made from {shown}: {_reason(error)}") from error
    complete = {key: float(getattr(made, key)) for key in family.arguments}
    if any(math.isnan(value) for value in complete.values()):
        raise PriorError(f"prior of `{name}`: {kind} needs numbers; got {item}")
    return {key: value for key, value in complete.items() if math.isfinite(value)}


def _from_torch(name: str, marginal: Any) -> dict[str, Any]:
    kind = type(marginal).__name__
    if not isinstance(marginal, Distribution):
        raise PriorError(
            f"prior of `{name}`: must be a torch distribution or a mapping with `dist`; got {marginal!r:.80}"
        )
    if kind in FAMILIES and (marginal.batch_shape.numel() != 1 or marginal.event_shape != ()):
        raise PriorError(
            f"prior of `{name}`: must be one number; got a distribution of shape {tuple(marginal.batch_shape)}: "
            "give every parameter its own name"
        )
    arguments = FAMILIES[kind].arguments if kind in FAMILIES else ()
    return {"dist": kind, **{key: float(getattr(marginal, key)) for key in arguments}}


def _groups(marginals: list[dict[str, Any]]) -> list[_Group]:
    kinds = list(dict.fromkeys(str(marginal["dist"]) for marginal in marginals))
    groups = []
    for kind in kinds:
        index = [i for i, marginal in enumerate(marginals) if marginal["dist"] == kind]
        names = FAMILIES[kind].arguments
        infinite = {"low": -math.inf, "high": math.inf}
        arguments = {key: [float(marginals[i].get(key, infinite.get(key, math.nan))) for i in index] for key in names}
        groups.append(_Group(FAMILIES[kind], index, arguments))
    return groups


def _bounds(support: Any, size: int) -> tuple[Tensor, Tensor]:
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    return tuple(torch.as_tensor(bound, dtype=torch.float64).expand(size).clone() for bound in (low, high))  # type: ignore[return-value]


def _reason(error: Exception) -> str:
    """The first line of an error, or what torch's validation means to say in five."""
    found = re.search(r"Expected parameter (\w+) .* to satisfy the constraint (.*), but found", str(error), re.DOTALL)
    if found is None:
        return str(error).strip().splitlines()[0]
    return f"`{found[1]}` must satisfy {found[2]}"


def _formatted(marginal: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value:g}" for key, value in marginal.items() if key != "dist")
    return f"{marginal['dist']}({arguments})"

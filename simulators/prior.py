r"""The prior: named parameters, with a bijection to :math:`\mathbb{R}^d` under which it is N(0, I).

Flows live in that space: what they sample never leaves the support, and nothing is ever rejected. The density there
and here differ by :math:`\log q(\theta) = \log q(z) + \log |dz / d\theta|`. Only a class of the user's own that has
no cdf gives z another distribution, of about unit width (see `parts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
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
from ..data.variables import RESERVED, RESERVED_IN_RESULTS, Support, Variable, Variables
from .entries import Entry, make_parts, names_of, read_entry
from .parts import Part

_OF_ONE = ("units", "label")  # kept for each parameter, whatever it shares a distribution with


class Prior:
    """Named parameters, independent unless they were named together.

    Args:
        marginals: Name of a parameter → a scalar ``torch.distributions`` object (or `TruncatedNormal`, `LogUniform`),
            or its form in YAML, such as ``{"dist": "Uniform", "low": 0, "high": 1}``. Several names, as ``"a, b"`` or
            ``("a", "b")`` → a ``MultivariateNormal``, or a joint class of the user's own.
        units: Name → units, for tables and figures.
        labels: Name → what figures print, such as ``"$\\beta$"``.
        order: Order of the parameters, where it is not that of ``marginals``.
        folder: What ``dist: file.py:Class`` is relative to; the working directory when None.
        run_code: Whether a module that ``dist`` names and that is not loaded yet may be.

    Raises:
        PriorError: An entry that is no distribution, has impossible arguments, or is of a kind that has no
            bijection to the real line; or a parameter named twice, or by a name that stores or results need.
    """

    def __init__(
        self,
        marginals: Mapping[Any, Any],
        *,
        units: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        order: Iterable[str] | None = None,
        folder: Path | None = None,
        run_code: bool = True,
    ) -> None:
        if not marginals:
            raise PriorError("`marginals` of a prior must name at least one parameter; got none")
        self._entries = [read_entry(names_of(key), given, folder, run_code) for key, given in marginals.items()]
        self._units, self._labels = dict(units or {}), dict(labels or {})
        self.names = _ordered([name for entry in self._entries for name in entry.names], order)
        _require_free(self.names)
        self._parts = make_parts(self._entries, list(self.names))
        self._order = torch.argsort(torch.cat([part.index for part in self._parts]))
        self._in_order = torch.equal(self._order, torch.arange(self.dim))
        sides = zip(*(part.bounds() for part in self._parts), strict=True)
        self._low, self._high = (torch.cat(side)[self._order] for side in sides)
        self._check_scales()

    @property
    def dim(self) -> int:
        return len(self.names)

    @property
    def variables(self) -> Variables:
        """The parameters with their units, labels and support."""
        return Variables(
            Variable(
                name, units=self._units.get(name, ""), label=self._labels.get(name, ""), support=Support(low, high)
            )
            for name, low, high in zip(self.names, self._low.tolist(), self._high.tolist(), strict=True)
        )

    @property
    def normal(self) -> bool:
        """Whether z ~ N(0, I) under the prior, as it is unless a class of the user's own has no cdf."""
        return all(part.normal for part in self._parts)

    def sample(self, rows: int, rng: np.random.Generator) -> Float[np.ndarray, "rows parameter"]:
        """Independent draws, float64, a function of ``rng`` alone: the image of standard normal draws."""
        theta = self.from_unconstrained(torch.from_numpy(rng.standard_normal((rows, self.dim))))
        for part in self._parts:
            if not part.normal:
                theta[:, part.index] = _seeded(part, rows, rng)
        return theta.numpy()

    def draw(self, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The same draws by name, each ``(rows,)``: a prior is what a known nuisance is drawn from, too."""
        return dict(zip(self.names, self.sample(rows, rng).T.copy(), strict=True))

    def log_prob(self, theta: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch"]:
        """Log density; -inf outside the support."""
        theta = self._checked(theta)
        return torch.stack([part.log_prob(theta[..., part.index]) for part in self._parts]).sum(0)

    def contains(self, theta: Float[Tensor, "*batch parameter"]) -> Bool[Tensor, "*batch"]:
        """Whether theta lies in the support."""
        theta = self._checked(theta)
        return torch.stack([part.contains(theta[..., part.index]) for part in self._parts]).all(0)

    def to_unconstrained(self, theta: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch parameter"]:
        """theta → z; under the prior z ~ N(0, I). theta outside the support goes to the nearest point inside."""
        theta = self._checked(theta)
        return self._gather([part.to_unconstrained(theta[..., part.index]) for part in self._parts])

    def from_unconstrained(self, z: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch parameter"]:
        """z → theta, strictly inside the support."""
        z = self._checked(z)
        return self._gather([part.from_unconstrained(z[..., part.index]) for part in self._parts])

    def rounded(
        self, theta: Float[Tensor, "*batch parameter"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*batch parameter"]:
        """Theta in another precision, no further out than the ends of the support."""
        near = theta.to(dtype)
        low, high = self._low.to(theta.device), self._high.to(theta.device)
        near = torch.where(near.double() < low, torch.nextafter(near, near.new_tensor(torch.inf)), near)
        return torch.where(near.double() > high, torch.nextafter(near, near.new_tensor(-torch.inf)), near)

    def log_abs_det(
        self, theta: Float[Tensor, "*batch parameter"], z: Float[Tensor, "*batch parameter"]
    ) -> Float[Tensor, "*batch"]:
        """log |dz / dtheta|; -inf outside the support, so that any density built on it vanishes there."""
        theta, z = self._checked(theta), self._checked(z)
        parts = [part.log_abs_det(theta[..., part.index], z[..., part.index]) for part in self._parts]
        return torch.stack(parts).sum(0)

    @property
    def torch(self) -> Distribution:
        """The same prior as a torch distribution of float32 draws with event dimension 1, as sbi takes it."""
        base = Independent(Normal(torch.zeros(self.dim), torch.ones(self.dim)), 1) if self.normal else _Latent(self)
        return TransformedDistribution(base, [_PriorTransform(self)], validate_args=False)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Complete: ``{name: {dist, arguments, units, label}}``.

        Parameters that share a distribution have ``joint``, their names, besides; the first has its arguments.
        """
        items = {name: item for entry in self._entries for name, item in _by_name(entry).items()}
        return {
            name: {**items[name], "units": self._units.get(name, ""), "label": self._labels.get(name, "")}
            for name in self.names
        }

    @classmethod
    def from_json(cls, described: Mapping[str, Mapping[str, Any]], *, run_code: bool = False) -> Prior:
        """The prior that ``to_json`` wrote.

        Args:
            described: As written.
            run_code: Whether a class of the user's own may be loaded; where false, it must have been already.

        Raises:
            PriorError: It names a class that is not loaded; or it was not written by ``to_json``.
        """
        marginals: dict[tuple[str, ...], dict[str, Any]] = {}
        for name, item in described.items():
            joint = tuple(item.get("joint", (name,)))
            if joint[0] == name:
                marginals[joint] = {key: value for key, value in item.items() if key not in (*_OF_ONE, "joint")}
        units = {name: str(item.get("units") or "") for name, item in described.items()}
        labels = {name: str(item.get("label") or "") for name, item in described.items()}
        return cls(marginals, units=units, labels=labels, order=described, run_code=run_code)

    def replace(self, overrides: Mapping[Any, Any], folder: Path | None = None) -> Prior:
        """The same prior with some entries given anew, in order.

        Units and labels stay unless given, the order of the parameters always. Of a joint normal of which only some
        parameters are given anew, the others keep their marginal.

        Args:
            overrides: As ``marginals``, in their form in YAML, which may have ``units`` and ``label`` besides.
            folder: What ``dist: file.py:Class`` is relative to.

        Raises:
            PriorError: A name that is no parameter, or an entry that is impossible.
        """
        changed = self
        for key, given in overrides.items():
            changed = changed._with(names_of(key), given, folder)
        return changed

    def _with(self, names: tuple[str, ...], given: Any, folder: Path | None) -> Prior:
        for name in names:
            if name not in self.names:
                raise PriorError(f"prior of `{name}`: no such parameter; {did_you_mean(name, self.names)}")
        item = dict(given) if isinstance(given, Mapping) else given
        new = (
            {key: item.pop(key) for key in _OF_ONE if key in item} if isinstance(item, dict) and len(names) == 1 else {}
        )
        kept = [
            entry.without(set(names)) if set(names) & set(entry.names) else entry
            for entry in self._entries
            if not set(entry.names) <= set(names)
        ]
        return Prior(
            {**{entry.names: entry.item for entry in kept}, names: read_entry(names, item, folder).item},
            units={**self._units, **({names[0]: str(new["units"] or "")} if "units" in new else {})},
            labels={**self._labels, **({names[0]: str(new["label"] or "")} if "label" in new else {})},
            order=self.names,
        )

    @property
    def units(self) -> dict[str, str]:
        """Units by name, of parameters that have some."""
        return {name: text for name, text in self._units.items() if text}

    def with_units(self, units: Mapping[str, str]) -> Prior:
        """The same prior, with units for parameters that have none."""
        described = self.to_json()
        for name, text in units.items():
            described[name]["units"] = described[name]["units"] or text
        return Prior.from_json(described)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.to_json(),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prior) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"Prior({', '.join(f'{entry.title}={entry}' for entry in self._entries)})"

    def _checked(self, values: Tensor) -> Tensor:
        if values.shape[-1:] != (self.dim,):
            raise ShapeError(
                f"`theta` must have {self.dim} parameters ({', '.join(self.names)}) in its last axis; "
                f"got shape {tuple(values.shape)}"
            )
        return values.double()

    def _check_scales(self) -> None:
        """Refuse what double precision cannot hold, such as a normal whose variance is 0 in it."""
        middle = self.from_unconstrained(torch.zeros(self.dim, dtype=torch.float64))
        for part in self._parts:
            if not part.log_prob(middle[part.index]).isfinite():
                named = ", ".join(self.names[i] for i in part.index.tolist())
                raise PriorError(
                    f"prior of `{named}`: its density is no number at its centre, {middle[part.index].tolist()}: the scale is "
                    "beyond double precision; use other units"
                )

    def _gather(self, columns: list[Tensor]) -> Tensor:
        together = columns[0] if len(columns) == 1 else torch.cat(columns, -1)
        return together if self._in_order else together[..., self._order.to(together.device)]


def _unpickled(described: dict[str, dict[str, Any]]) -> Prior:
    return Prior.from_json(described, run_code=True)


def _ordered(names: list[str], order: Iterable[str] | None) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PriorError(f"prior of `{twice[0]}`: named twice: a parameter has one entry, alone or joint")
    if order is None:
        return tuple(names)
    if set(order) != set(names):
        raise PriorError(f"`order` must name {', '.join(names)}; got {', '.join(order)}")
    return tuple(order)


def _require_free(names: Iterable[str]) -> None:
    taken = RESERVED | RESERVED_IN_RESULTS
    for name in names:
        if not name.isidentifier() or name in taken:
            raise PriorError(
                f"prior of `{name}`: a parameter must be named by an identifier that stores and results do not use themselves "
                f"({', '.join(sorted(taken))}): call it otherwise"
            )


def _by_name(entry: Entry) -> dict[str, dict[str, Any]]:
    first, *others = entry.names
    if not others:
        return {first: entry.item}
    shared = {"dist": entry.item["dist"], "joint": list(entry.names)}
    return {first: {**entry.item, **shared}, **{name: dict(shared) for name in others}}


def _seeded(part: Part, rows: int, rng: np.random.Generator) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        return part.sample(rows)


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
        return self.prior.rounded(self.prior.from_unconstrained(x), x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.prior.to_unconstrained(y).to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.prior.log_abs_det(y, x.double()).to(x.dtype)


class _Latent(Distribution):
    """What z is distributed as where that is not N(0, I)."""

    support = constraints.real_vector

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        super().__init__(event_shape=torch.Size([prior.dim]), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        rng = np.random.default_rng(int(torch.randint(2**62, ())))  # torch's generator decides
        theta = torch.from_numpy(self.prior.sample(shape.numel(), rng))
        z = self.prior.to_unconstrained(theta)
        return z.reshape(*shape, self.prior.dim).float()

    def log_prob(self, value: Tensor) -> Tensor:
        theta = self.prior.from_unconstrained(value)
        return (self.prior.log_prob(theta) - self.prior.log_abs_det(theta, value)).to(value.dtype)


@torch.distributions.biject_to.register(_PriorSupport)  # type: ignore[untyped-decorator]
def _biject_to_prior(support: _PriorSupport) -> Transform:
    return _PriorTransform(support.prior)

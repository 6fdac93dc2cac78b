"""One entry of a prior as YAML writes it: read, checked, and made into a part of the prior.

Three kinds: a family of `families` by its torch name, for one parameter; ``MultivariateNormal`` for several; and a
class of the user's own, ``module:Class`` or ``file.py:Class``, for one or several.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from ..data import registry
from ..data.errors import PriorError, SimferError, did_you_mean
from ..data.files import fingerprint
from .families import FAMILIES, Family
from .parts import JointNormal, Marginals, OwnLaw, Part, cdf_family, standard, support_of
from .refused import why_not

_JOINT = "MultivariateNormal"
_COVARIANCES = ("covariance_matrix", "precision_matrix", "scale_tril")
_FIXED = "fixed"  # what reading back must not compute anew: the bijection of an own class


@dataclass(frozen=True)
class Entry:
    """Parameters that share one distribution.

    Attributes:
        names: The parameters; one, but for joint distributions.
        item: The checked form in YAML, JSON throughout: ``dist`` and its arguments.
        law: Makes the distribution of an own class; None for ours and torch's.
    """

    names: tuple[str, ...]
    item: dict[str, Any]
    law: OwnClass | None = None

    @property
    def title(self) -> str:
        return ", ".join(self.names)

    def without(self, gone: set[str]) -> Entry:
        """The marginal of the parameters that are not ``gone``.

        Raises:
            PriorError: The marginals of an own class are not known.
        """
        kept = [i for i, name in enumerate(self.names) if name not in gone]
        if self.law is not None:
            raise PriorError(
                f"prior of `{self.title}`: {self.item['dist']} is joint, and what it leaves for "
                f"`{self.names[kept[0]]}` is not known: give all of `{self.title}` anew, together"
            )
        loc = [self.item["loc"][i] for i in kept]
        covariance = [[self.item["covariance_matrix"][i][j] for j in kept] for i in kept]
        names = tuple(self.names[i] for i in kept)
        if len(names) == 1:
            return Entry(names, {"dist": "Normal", "loc": loc[0], "scale": math.sqrt(covariance[0][0])})
        return Entry(names, {"dist": _JOINT, "loc": loc, "covariance_matrix": covariance})

    def __str__(self) -> str:
        shown = {key: value for key, value in self.item.items() if key not in ("dist", _FIXED)}
        return f"{self.item['dist']}({', '.join(f'{key}={_short(value)}' for key, value in shown.items())})"


@dataclass(frozen=True)
class OwnClass:
    """A user's distribution class with its arguments; numbers reach it as float64 tensors."""

    kind: Any
    arguments: dict[str, Any]

    def __call__(self, device: torch.device | None = None) -> Any:
        return self.kind(**{key: _tensor(value, device) for key, value in self.arguments.items()})


def names_of(key: Any) -> tuple[str, ...]:
    """The parameters that a key of a prior names: ``"a"``, ``"a, b"`` or ``("a", "b")``."""
    return tuple(part.strip() for part in key.split(",")) if isinstance(key, str) else tuple(map(str, key))


def arguments_text(item: Mapping[str, Any]) -> str:
    """The arguments of one parameter, as tables print them, from ``Prior.to_json``."""
    if "joint" in item:
        return f"joint: {', '.join(item['joint'])}"
    return ", ".join(f"{key} = {value:g}" for key, value in item.items() if isinstance(value, int | float))


def read_entry(names: tuple[str, ...], given: Any, folder: Path | None = None, run_code: bool = True) -> Entry:
    """Check one entry.

    Args:
        names: The parameters it is for.
        given: A torch distribution, or a mapping with ``dist``.
        folder: What ``file.py:Class`` is relative to; the working directory when None.
        run_code: Whether a module that is not loaded yet may be.

    Raises:
        PriorError: Says for which parameter, what is wrong and what to do.
    """
    title = ", ".join(names)
    try:
        item = dict(given) if isinstance(given, Mapping) else _from_torch(given)
        kind = str(item.get("dist"))
        if ":" in kind:
            return _own(names, item, folder, run_code)
        item.pop("dist", None)
        if len(names) > 1 or kind == _JOINT:
            return Entry(names, {"dist": _JOINT, **_joint_arguments(kind, item, len(names))})
        _require_family(kind)
        return Entry(names, {"dist": kind, **_family_arguments(kind, item)})
    except SimferError as error:
        raise PriorError(f"prior of `{title}`: {error}") from error


def make_parts(entries: list[Entry], order: list[str]) -> list[Part]:
    """The parts of a prior; parameters of one family share a part.

    Args:
        entries: Checked entries.
        order: All parameters, in the order of theta's columns.
    """
    alone = [entry for entry in entries if entry.law is None and entry.item["dist"] != _JOINT]
    kinds = list(dict.fromkeys(entry.item["dist"] for entry in alone))
    families: list[Part] = [_marginals([e for e in alone if e.item["dist"] == kind], order) for kind in kinds]
    return families + [_single(entry, order) for entry in entries if entry not in alone]


def _marginals(entries: list[Entry], order: list[str]) -> Marginals:
    family, infinite = FAMILIES[entries[0].item["dist"]], {"low": -math.inf, "high": math.inf}
    arguments = {
        key: torch.tensor([entry.item.get(key, infinite.get(key, math.nan)) for entry in entries], dtype=torch.float64)
        for key in family.arguments
    }
    return Marginals(family, [order.index(entry.names[0]) for entry in entries], partial(_batch, family, arguments))


def _batch(family: Family, arguments: dict[str, Tensor], device: torch.device) -> Distribution:
    return family.distribution(**{key: value.to(device) for key, value in arguments.items()}, validate_args=False)


def _single(entry: Entry, order: list[str]) -> Part:
    index = [order.index(name) for name in entry.names]
    if entry.law is None:
        return JointNormal(index, _tensor(entry.item["loc"]), _tensor(entry.item["covariance_matrix"]))
    if "centre" not in entry.item[_FIXED]:
        return Marginals(cdf_family(entry.law), index, entry.law)
    centre, spread = (_tensor(entry.item[_FIXED][key]).reshape(-1) for key in ("centre", "spread"))
    return OwnLaw(index, entry.law, centre, spread)


def _require_family(kind: str) -> None:
    if kind not in FAMILIES:
        reason = why_not(kind)
        hint = did_you_mean(kind, [*FAMILIES, _JOINT])
        shown = None if kind == "None" else kind
        raise PriorError(f"`{kind}` cannot be used: {reason}" if reason else f"unknown `dist` {shown!r}; {hint}")


def _family_arguments(kind: str, item: dict[str, Any]) -> dict[str, float]:
    family = FAMILIES[kind]
    _require_known(kind, item, family.arguments)
    try:
        arguments = {key: float(value) for key, value in item.items() if value is not None}
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in arguments.items()}
        made = family.distribution(**tensors, validate_args=True)
    except (TypeError, ValueError) as error:
        raise PriorError(f"{kind} cannot be made from {_shown(item)}: {_reason(error)}") from error
    complete = {key: float(getattr(made, key)) for key in family.arguments}
    if any(math.isnan(value) for value in complete.values()):
        raise PriorError(f"{kind} needs numbers; got {item}")
    return {key: value for key, value in complete.items() if math.isfinite(value)}


def _joint_arguments(kind: str, item: dict[str, Any], size: int) -> dict[str, Any]:
    if kind != _JOINT:
        known = kind in FAMILIES
        raise PriorError(
            f"{kind} is of one parameter, and {size} are named: give each its own line"
            if known
            else f"joint over several parameters is only {_JOINT} or a class of your own; got {kind!r}"
        )
    if size == 1:
        raise PriorError(f"`{kind}` cannot be used: {why_not(kind)}")
    _require_known(kind, item, ("loc", *_COVARIANCES))
    try:
        arrays = {key: torch.tensor(value, dtype=torch.float64) for key, value in item.items() if value is not None}
        for key, array in arrays.items():
            _require_shape(key, array, (size,) if key == "loc" else (size, size))
        made = MultivariateNormal(**arrays, validate_args=True)
    except (TypeError, ValueError) as error:
        raise PriorError(f"{kind} cannot be made from {_shown(item)}: {_reason(error)}") from error
    covariance = arrays.get("covariance_matrix", made.covariance_matrix)
    return {"loc": made.loc.tolist(), "covariance_matrix": covariance.tolist()}


def _require_shape(key: str, array: Tensor, shape: tuple[int, ...]) -> None:
    if array.shape != shape or not torch.isfinite(array).all():
        what = " × ".join(map(str, shape))
        raise ValueError(f"`{key}` must be {what} finite numbers, one for each parameter named; got {array.tolist()}")


def _require_known(kind: str, item: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = [key for key in item if key not in known]
    if unknown:
        raise PriorError(f"{kind} has no `{unknown[0]}`; {did_you_mean(unknown[0], known)}")


def _own(names: tuple[str, ...], item: dict[str, Any], folder: Path | None, run_code: bool) -> Entry:
    named = absolute(str(item.pop("dist")), folder)
    fixed = item.pop(_FIXED, None)
    if not run_code and not registry.is_loaded(named):
        raise PriorError(
            f"{named} is code that is not loaded, and reading a file runs none: "
            f'load it first, by `simfer.data.registry.resolve("priors", "{named}")`'
        )
    kind = registry.resolve("priors", named, folder)
    reason = why_not(getattr(kind, "__name__", "")) if _of_torch(kind) else None
    if reason:
        raise PriorError(f"`{named}` cannot be used: {reason}")
    law = OwnClass(kind, item)
    return Entry(names, {"dist": named, **item, _FIXED: fixed or _examined(named, law, len(names))}, law)


def _examined(named: str, law: OwnClass, size: int) -> dict[str, Any]:
    """Hold an own class to what a prior needs; the bijection it gets, and a hash of its source."""
    made, support = _made(named, law, size)
    first, second = _seeded(made), _seeded(made)
    if not torch.equal(first, second):
        raise PriorError(f"{named} must draw from torch's generator alone; two draws after one seed differ")
    try:
        density = made.log_prob(first)
    except NotImplementedError as error:
        raise PriorError(f"{named} needs a `log_prob`: it has none") from error
    if not (torch.isfinite(first).all() and support.check(first).all() and torch.isfinite(density).all()):
        raise PriorError(f"{named} must draw finite numbers inside its `support`, with a finite `log_prob`")
    source = {"source": _source(law.kind)}
    if size == 1 and not made.event_shape and _has_cdf(made):
        return source
    try:
        centre, spread = standard(made, first)
    except NotImplementedError as error:
        raise PriorError(f"{named} has a `support` that torch's `biject_to` does not know: {support}") from error
    if torch.tensor(centre).numel() != size:
        raise PriorError(f"{named} has a support with fewer dimensions than parameters: {_simplex()}")
    return {**source, "centre": centre, "spread": spread}


def _made(named: str, law: OwnClass, size: int) -> tuple[Distribution, Any]:
    try:
        made = law()
        if not isinstance(made, Distribution):
            raise TypeError(f"it must be a torch Distribution; got {type(made).__name__}")
        support = support_of(made)
    except NotImplementedError as error:
        raise PriorError(f"{named} must have a `support`, a constraint of torch.distributions.constraints") from error
    except Exception as error:
        raise PriorError(f"{named} cannot be made from {_shown(law.arguments)}: {_reason(error)}") from error
    if getattr(support, "is_discrete", False):
        raise PriorError(f"{named} cannot be used: {why_not('Poisson')}")
    if made.batch_shape or made.event_shape.numel() != size or len(made.event_shape) > 1:
        raise PriorError(
            f"{named} must be of {size} numbers, one for each parameter named; got batch shape "
            f"{tuple(made.batch_shape)} and event shape {tuple(made.event_shape)}"
        )
    return made, support


def _seeded(law: Distribution, rows: int = 2000) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return law.sample((rows,))


def _has_cdf(law: Distribution) -> bool:
    levels = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    try:
        return bool(torch.allclose(law.cdf(law.icdf(levels)).double(), levels, atol=1e-9))
    except Exception:  # whatever a cdf that is none may raise
        return False


def _from_torch(given: Any) -> dict[str, Any]:
    if not isinstance(given, Distribution):
        raise PriorError(f"must be a torch distribution or a mapping with `dist`; got {given!r:.80}")
    kind = type(given).__name__
    if isinstance(given, MultivariateNormal):
        return {"dist": _JOINT, "loc": given.loc.tolist(), "covariance_matrix": given.covariance_matrix.tolist()}
    if kind in FAMILIES:
        if given.batch_shape.numel() != 1 or given.event_shape != ():
            raise PriorError(
                f"must be one number; got a distribution of shape {tuple(given.batch_shape)}: "
                "give every parameter its own name"
            )
        return {"dist": kind, **{key: float(getattr(given, key)) for key in FAMILIES[kind].arguments}}
    if _of_torch(type(given)):
        return {"dist": kind}
    arguments = {key: _plain(getattr(given, key)) for key in given.arg_constraints}
    return {"dist": f"{type(given).__module__}:{type(given).__qualname__}", **arguments}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _of_torch(kind: Any) -> bool:
    return str(getattr(kind, "__module__", "")).startswith("torch.")


def absolute(named: str, folder: Path | None) -> str:
    """``dist`` with the path of ``file.py:Class`` made absolute; any other as it is."""
    where, _, attribute = named.rpartition(":")
    return f"{((folder or Path.cwd()) / where).resolve()}:{attribute}" if where.endswith(".py") else named


def _source(kind: Any) -> str:
    try:
        return fingerprint(inspect.getsource(kind))[:16]
    except (OSError, TypeError):  # defined in an interactive session, which has no file
        return fingerprint(getattr(kind, "__qualname__", ""))[:16]


def _tensor(value: Any, device: torch.device | None = None) -> Any:
    """Numbers as float64 tensors; what else an own class may take as it is."""
    if isinstance(value, bool | str) or value is None:
        return value
    return torch.tensor(value, dtype=torch.float64, device=device)


def _simplex() -> str:
    return str(why_not("Dirichlet"))


def _shown(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in item.items()) or "no arguments"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reason(error: Exception) -> str:
    """The first line of an error, or what torch's validation means to say in five."""
    found = re.search(r"Expected parameter (\w+) .* to satisfy the constraint (.*), but found", str(error), re.DOTALL)
    if found is None:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"`{found[1]}` must satisfy {found[2]}"

r"""From x as simulated to features: a function per observable, then standardisation; both live in the model.

What the network needs is thus in the weights: whoever loads a model gives x in its own units. Computed in float64, with m
and sd those of T(x) over the training rows:

.. math:: f = \mathrm{soft}\!\left(\frac{T(x) - m}{\max(\mathrm{sd}, \mathrm{floor})}\right), \qquad
    \mathrm{soft}(f) = \mathrm{sign}(f) \, (10 + \log(1 + |f| - 10)) \text{ where } |f| > 10

so that an observation far beyond the training rows still gives a finite feature. A floor, as Gloeckler, Deistler & Macke
(2023), https://arxiv.org/abs/2305.14984, use it, keeps entries that hardly vary from being blown up. Entries that share
their statistics, and members of a set that are absent, are the business of `structure`; the functions T that of
`transforms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..data.errors import ConfigError, NotFiniteError, ShapeError, did_you_mean
from ..data.statistics import Moments, Thinned
from ..data.variables import Variable, Variables
from .embeddings.base import FLAT, TURNED
from .embeddings.plan import plan, scaling
from .settings import EstimatorSettings, XTransform
from .structure import Scaling
from .transforms import FUNCTIONS, SCORES, Shape, choose, knots, learn, log_slope, ranked, ranked_log_slope, transformed

_NAMES: tuple[XTransform, ...] = get_args(XTransform)  # a model keeps the place in it
_SOFT_FROM = 10.0
_HUGE = 1e38
_SAMPLE_ENTRIES, _SAMPLE_ROWS = 2**23, (256, 10_000)

Rows = Mapping[str, Tensor]


def default_transform(variable: Variable) -> XTransform:
    """What is kept unless another is much better: identity; the root of counts, whose variance grows with their mean.

    Bartlett (1936), https://doi.org/10.2307/2983678.
    """
    return "sqrt" if _is_count(variable) else "identity"


def build_preprocess(observables: Variables, settings: EstimatorSettings) -> Preprocess:
    """The preprocessing that an estimator's embedding needs.

    Raises:
        ShapeError: A transform for an observable that is none, or a network over one of a shape it cannot take.
        ConfigError: Whitening for a network that is not over a vector.
    """
    parts = plan(settings.embedding, observables)
    structured = [part.settings.name for part in parts if part.settings.kind not in FLAT]
    if settings.whiten and structured:
        raise ConfigError(
            f"`whiten` mixes the entries of x, and `{structured[0]}` needs them in their places: leave it out, or choose "
            f"an embedding of {', '.join(FLAT)}"
        )
    turned = {v.name: "identity" for part in parts if part.settings.kind in TURNED for v in part.variables}
    return Preprocess(
        observables,
        cast("dict[str, XTransform]", turned | settings.transforms),
        sd_floor=settings.sd_floor,
        whiten=settings.whiten,
        impute=settings.impute,
        scaling=scaling(settings.embedding, observables),
    )


class Preprocess(nn.Module):
    """x by name → one standardised feature vector per row.

    Args:
        observables: What x consists of.
        transforms: Observable → function; where not given, chosen from the training rows (`transforms.choose`).
        sd_floor: What entries are divided by whose standard deviation is smaller.
        whiten: Whether features are rotated to their principal axes, each scaled to unit variance.
        impute: Whether entries that are not finite become 0, the mean, instead of going on as NaN.
        scaling: Observable → what is alike in it; where not given, nothing is.

    Raises:
        ShapeError: A transform for an observable that is none, or one that needs bounds where there are none.
    """

    mean: Tensor
    sd: Tensor
    chosen: Tensor
    shapes: Tensor
    soft_from: Tensor
    rotation: Tensor

    def __init__(
        self,
        observables: Variables,
        transforms: Mapping[str, XTransform],
        *,
        sd_floor: float = 0.0,
        whiten: bool = False,
        impute: bool = False,
        scaling: Mapping[str, Scaling] | None = None,
    ) -> None:
        super().__init__()
        self.observables = observables
        self.scaling = {v.name: (scaling or {}).get(v.name, Scaling()) for v in observables}
        self.masks = {s.mask for s in self.scaling.values() if s.mask}
        declared = {name: kind for name, kind in transforms.items() if kind != "auto"} | dict.fromkeys(
            self.masks, "identity"
        )
        self.transforms = {v.name: declared.get(v.name, default_transform(v)) for v in observables}
        self._free = set(observables.names) - set(declared)
        for name in transforms:
            _require_transform(name, observables, self.transforms)
        self.sd_floor, self.whiten, self.impute = sd_floor, whiten, impute
        size = observables.size
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("sd", torch.ones(size, dtype=torch.float64))
        self.register_buffer("chosen", torch.tensor([_NAMES.index(name) for name in self.transforms.values()]))
        self.register_buffer("shapes", Shape.plain(size).table())
        self.register_buffer("soft_from", torch.full((size,), torch.inf))
        for variable in observables:
            if self.transforms[variable.name] == "rank":
                table = torch.zeros(2, len(SCORES), variable.size, dtype=torch.float64)
                self.register_buffer(f"knots_{variable.name}", table)
        if whiten:
            self.register_buffer("rotation", torch.eye(size))

    @property
    def features(self) -> int:
        return self.observables.size

    def fit(self, x: Rows) -> None:
        """`fit_parts` on rows that are all in memory."""
        self.fit_parts(lambda: [x])

    def fit_parts(self, parts: Callable[[], Iterable[Rows]]) -> None:
        """Take from all training rows what transforms, standardisation and whitening need. A constant entry becomes 0.

        In float64: a pass over what ``parts`` gives for the transforms, from at most 10,000 rows spread over all; one for
        mean and standard deviation; and one for the principal axes if the features are whitened.

        Raises:
            NotFiniteError: A declared transform that does not fit its observable.
        """
        self._learn_transforms(parts())
        self._standardise(parts())
        self.soft_from.copy_(torch.where(self._is_mask(), torch.inf, _SOFT_FROM))
        if self.whiten:
            self.rotation.copy_(_whitening(self._covariance(parts())))

    def forward(self, x: Rows) -> Float[Tensor, "rows feature"]:
        features = self._features(x)
        if self.impute:
            features = features.where(features.isfinite(), 0)
        features = _softened(features, self.soft_from)
        return features @ self.rotation if self.whiten else features

    def log_abs_det(self, x: Rows) -> Float[Tensor, "rows"]:
        """log |det df/dx|, with f the features; entries that are absent, and masks, have no part in it."""
        slopes = torch.cat([self._log_slopes(variable, x) for variable in self.observables], 1) - self.sd.log()
        slopes = slopes - torch.log1p((self._features(x).abs() - self.soft_from).clamp(min=0))
        total = slopes.where(self._present(x) & ~self._is_mask(), 0).sum(1)
        return total + torch.linalg.slogdet(self.rotation.double()).logabsdet if self.whiten else total

    def _learn_transforms(self, parts: Iterable[Rows]) -> None:
        """Choose where that is wanted, and fit functions to a sample of rows."""
        fewest, most = _SAMPLE_ROWS
        sample = Thinned(max(fewest, min(most, _SAMPLE_ENTRIES // self.features)))
        for x in parts:
            sample.update(torch.cat([self._entries(variable, x, torch.nan) for variable in self.observables], 1))
        for variable, values in zip(self.observables, sample.rows.split(self._sizes(), 1), strict=True):
            if variable.name not in self.masks:
                self._learn(variable, values)

    def _learn(self, variable: Variable, values: Float[Tensor, "rows entry"]) -> None:
        name, groups = variable.name, self.scaling[variable.name].groups(variable)
        pooled = _pooled(values, groups)
        if name in self._free:
            self.transforms[name] = choose(pooled, variable.support, default_transform(variable))
            self.chosen[self.observables.names.index(name)] = _NAMES.index(self.transforms[name])
        kind = self.transforms[name]
        if kind == "rank":
            self._knots(variable).copy_(knots(pooled)[..., groups])
        else:
            self.shapes[:, self._place(variable)] = learn(kind, pooled, variable.support).table()[:, groups]

    def _standardise(self, parts: Iterable[Rows]) -> None:
        moments, bad, rows = Moments(self.features), dict.fromkeys(self.transforms, 0), 0
        for x in parts:
            values = self._transformed(x)
            moments.update(values.where(self._present(x), torch.nan))
            rows += len(values)
            for variable in self.observables:
                bad[variable.name] += self._outside(variable, x)
        self._check_finite(bad, rows)
        mean, sd = _shared(moments, self._groups())
        sd = torch.where(sd > 1e-7 * mean.abs(), sd.clamp(min=self.sd_floor), self.sd_floor or 1.0)
        self.mean.copy_(torch.where(self._is_mask(), 0.0, mean))
        self.sd.copy_(torch.where(self._is_mask(), 1.0, sd))

    def _outside(self, variable: Variable, x: Rows) -> int:
        """Rows with an entry that is not finite, or not in the domain of a function that was declared."""
        name = self.transforms[variable.name]
        values = self._entries(variable, x)
        bad = ~values.isfinite()
        if name in FUNCTIONS and variable.name not in self._free:
            shape = self._shape(variable)
            bad = bad | ~FUNCTIONS[name].fits((values - shape.centre) / shape.scale)
        present = self.scaling[variable.name].entries_present(variable, x)
        return int((bad if present is None else bad & present).any(1).sum())

    def _check_finite(self, bad: Mapping[str, int], rows: int) -> None:
        for name, count in bad.items() if not self.impute else ():
            if count:
                raise NotFiniteError(
                    f"`{name}` is not finite after `{self.transforms[name]}` in {count} of {rows} rows: "
                    f"choose another of {', '.join(FUNCTIONS)}"
                )

    def _covariance(self, parts: Iterable[Rows]) -> Float[Tensor, "feature feature"]:
        """Mean over rows of the products of standardised features; what is not finite counts as the mean."""
        total, rows = torch.zeros(self.features, self.features, dtype=torch.float64), 0
        for x in parts:
            features = self._features(x)
            features = _softened(features.where(features.isfinite(), 0), self.soft_from)
            total += features.double().T @ features.double()
            rows += len(features)
        return total / rows

    def _features(self, x: Rows) -> Tensor:
        """Standardised, in float64; 0 where a member is absent."""
        features = (self._transformed(x) - self.mean) / self.sd
        return features.where(self._present(x), 0) if self.masks else features

    def _transformed(self, x: Rows) -> Tensor:
        """T(x) of all entries, in float64; without meaning where they are absent."""
        return torch.cat([self._transformed_entries(variable, x) for variable in self.observables], 1)

    def _transformed_entries(self, variable: Variable, x: Rows) -> Tensor:
        values, kind = self._entries(variable, x), self.transforms[variable.name]
        if kind == "rank":
            return ranked(values, self._knots(variable))
        return transformed(kind, values, self._shape(variable))

    def _log_slopes(self, variable: Variable, x: Rows) -> Tensor:
        values, kind = self._entries(variable, x), self.transforms[variable.name]
        if kind == "rank":
            return ranked_log_slope(values, self._knots(variable))
        return log_slope(kind, values, self._shape(variable))

    def _entries(self, variable: Variable, x: Rows, absent: float = 1.0) -> Float[Tensor, "rows entry"]:
        """One observable flattened, in float64, with a number of no consequence where entries are absent."""
        values = x[variable.name].reshape(-1, variable.size).double()
        present = self.scaling[variable.name].entries_present(variable, x)
        return values if present is None else values.where(present, absent)

    def _present(self, x: Rows) -> Bool[Tensor, "#rows feature"]:
        return torch.cat([self._present_entries(variable, x) for variable in self.observables], 1)

    def _present_entries(self, variable: Variable, x: Rows) -> Bool[Tensor, "rows entry"]:
        present = self.scaling[variable.name].entries_present(variable, x)
        if present is not None:
            return present
        values = x[variable.name]
        return torch.ones(len(values), variable.size, dtype=torch.bool, device=values.device)

    def _groups(self) -> Int64[Tensor, "feature"]:
        """Of all features, numbered on from observable to observable."""
        parts, first = [], 0
        for variable in self.observables:
            parts.append(first + self.scaling[variable.name].groups(variable))
            first = int(parts[-1].max()) + 1
        return torch.cat(parts)

    def _is_mask(self) -> Bool[Tensor, "feature"]:
        parts = [torch.full((variable.size,), variable.name in self.masks) for variable in self.observables]
        return torch.cat(parts).to(self.mean.device)

    def _knots(self, variable: Variable) -> Tensor:
        return cast(Tensor, getattr(self, f"knots_{variable.name}"))

    def _shape(self, variable: Variable) -> Shape:
        return Shape.of(self.shapes[:, self._place(variable)])

    def _place(self, variable: Variable) -> slice:
        first = 0
        for other in self.observables:
            if other.name == variable.name:
                return slice(first, first + variable.size)
            first += other.size
        raise AssertionError(variable.name)

    def _sizes(self) -> list[int]:
        return [variable.size for variable in self.observables]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A model of before these functions could learn has only `mean` and `sd`: its functions were used as they are."""
        if f"{prefix}chosen" not in state_dict:
            kinds = self.transforms | {
                v.name: "log1p" for v in self.observables if v.name in self._free and _is_count(v)
            }
            state_dict[f"{prefix}chosen"] = torch.tensor([_NAMES.index(kind) for kind in kinds.values()])
            state_dict[f"{prefix}shapes"] = Shape.plain(self.features).table()
            state_dict[f"{prefix}soft_from"] = torch.full((self.features,), torch.inf)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        names = (_NAMES[place] for place in self.chosen.tolist())
        self.transforms = dict(zip(self.observables.names, names, strict=True))


def _is_count(variable: Variable) -> bool:
    return variable.support.integer and variable.support.low >= 0


def _require_transform(name: str, observables: Variables, transforms: Mapping[str, XTransform]) -> None:
    if name not in observables.names:
        raise ShapeError(f"`transforms` has no observable `{name}`; {did_you_mean(name, observables.names)}")
    support = observables[name].support
    if transforms[name] == "logit" and not math.isfinite(support.high - support.low):
        raise ShapeError(
            f"`logit` needs an observable with bounds; the support of `{name}` is {support.low} to {support.high}: "
            "declare it, or choose another transform"
        )


def _shared(moments: Moments, groups: Int64[Tensor, "feature"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of entries that share them, by the formula of `Moments`; one of each per feature."""
    count = moments.count.double()
    empty = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    total = empty.index_add(0, groups, count).clamp(min=1)
    mean = (empty.index_add(0, groups, moments.mean * (count / total[groups])))[groups]
    squares = moments.squares + count * (moments.mean - mean).square()
    return mean, (empty.index_add(0, groups, squares) / total).sqrt()[groups]


def _pooled(values: Float[Tensor, "rows entry"], groups: Int64[Tensor, "entry"]) -> Float[Tensor, "value group"]:
    """Entries that share their statistics as one column."""
    count = int(groups.max()) + 1
    columns = values[:, groups.argsort(stable=True)].reshape(len(values), count, -1)
    return columns.transpose(1, 2).reshape(-1, count)


def _softened(features: Tensor, start: Tensor) -> Tensor:
    """In float32; the same up to ``start``, growing like the logarithm beyond; NaN only where it was."""
    features = features.clamp(-_HUGE, _HUGE).float()
    inside = features.clamp(-start, start)
    beyond = features - inside
    return inside + beyond.sign() * torch.log1p(beyond.abs())


def _whitening(covariance: Float[Tensor, "feature feature"]) -> Float[Tensor, "feature feature"]:
    """Principal axes over their standard deviations, in float64; axes without variance are left small."""
    variances, axes = torch.linalg.eigh(covariance)
    return axes / variances.clamp(min=max(1e-6 * float(variances.max()), 1e-12)).sqrt()

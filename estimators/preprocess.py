"""From x as simulated to features: a declared function per observable, then standardisation; both live in the model.

What the network needs is thus in the weights: whoever loads a model gives x in its own units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.errors import NotFiniteError, ShapeError, did_you_mean
from ..data.statistics import Moments
from ..data.variables import Variable, Variables
from .settings import XTransform

FUNCTIONS: dict[XTransform, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "arcsinh": torch.arcsinh,
}


def default_transform(variable: Variable) -> XTransform:
    """log1p for counts, whose spread grows with their mean; identity for the rest."""
    return "log1p" if variable.support.integer and variable.support.low >= 0 else "identity"


class Preprocess(nn.Module):
    """x by name → one standardised feature vector per row.

    Args:
        observables: What x consists of.
        transforms: Observable → function; where not given, `default_transform`.
        whiten: Whether features are rotated to their principal axes, each scaled to unit variance.
        impute: Whether entries that are not finite become 0, the mean, instead of going on as NaN.

    Raises:
        ShapeError: A transform for an observable that is none.
    """

    def __init__(
        self,
        observables: Variables,
        transforms: Mapping[str, XTransform],
        *,
        whiten: bool = False,
        impute: bool = False,
    ) -> None:
        super().__init__()
        for name in transforms:
            if name not in observables.names:
                raise ShapeError(f"`transforms` has no observable `{name}`; {did_you_mean(name, observables.names)}")
        self.observables = observables
        self.transforms = {v.name: transforms.get(v.name, default_transform(v)) for v in observables}
        self.whiten, self.impute = whiten, impute
        self.mean: Tensor
        self.sd: Tensor
        self.register_buffer("mean", torch.zeros(observables.size))
        self.register_buffer("sd", torch.ones(observables.size))
        self.rotation: Tensor
        if whiten:
            self.register_buffer("rotation", torch.eye(observables.size))

    @property
    def features(self) -> int:
        return self.observables.size

    def fit(self, x: Mapping[str, Tensor]) -> None:
        """`fit_parts` on rows that are all in memory."""
        self.fit_parts(lambda: [x])

    def fit_parts(self, parts: Callable[[], Iterable[Mapping[str, Tensor]]]) -> None:
        """Take mean and standard deviation of every entry from all training rows. A constant entry becomes 0.

        One pass over what ``parts`` gives, in float64, and a second one for the principal axes if the features are whitened.

        Raises:
            NotFiniteError: A transform that does not fit its observable.
        """
        moments, bad, rows = Moments(self.features), dict.fromkeys(self.transforms, 0), 0
        for x in parts():
            values = self._transformed(x).double()
            moments.update(values)
            rows += len(values)
            for variable, part in zip(self.observables, values.split(self._sizes(), dim=1), strict=True):
                bad[variable.name] += int((~part.isfinite()).any(1).sum())
        self._check_finite(bad, rows)
        self.mean.copy_(moments.mean)
        self.sd.copy_(torch.where(moments.sd > 1e-7 * moments.mean.abs(), moments.sd, 1.0))
        if self.whiten:
            self.rotation.copy_(_whitening(self._second_moments(parts()) / rows))

    def _second_moments(self, parts: Iterable[Mapping[str, Tensor]]) -> Float[Tensor, "feature feature"]:
        """Sum over rows of the products of standardised features; what is not finite counts as the mean."""
        total = torch.zeros(self.features, self.features, dtype=torch.float64)
        for x in parts:
            values = self._transformed(x).double()
            features = ((values - self.mean) / self.sd).where(values.isfinite(), 0)
            total += features.T @ features
        return total

    def _check_finite(self, bad: Mapping[str, int], rows: int) -> None:
        for name, count in bad.items() if not self.impute else ():
            if count:
                raise NotFiniteError(
                    f"`{name}` is not finite after `{self.transforms[name]}` in {count} of {rows} rows: "
                    f"choose another of {', '.join(FUNCTIONS)}"
                )

    def forward(self, x: Mapping[str, Tensor]) -> Float[Tensor, "rows feature"]:
        features = (self._transformed(x) - self.mean) / self.sd
        if self.impute:
            features = features.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return features @ self.rotation if self.whiten else features

    def _transformed(self, x: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(
            [FUNCTIONS[self.transforms[v.name]](x[v.name]).reshape(-1, v.size) for v in self.observables], 1
        )

    def _sizes(self) -> list[int]:
        return [variable.size for variable in self.observables]


def _whitening(covariance: Float[Tensor, "feature feature"]) -> Float[Tensor, "feature feature"]:
    """Principal axes over their standard deviations, in float64; axes without variance are left small."""
    variances, axes = torch.linalg.eigh(covariance)
    return axes / variances.clamp(min=1e-6 * float(variances.max())).sqrt()

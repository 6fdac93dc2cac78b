"""The contract of a check: a pure function of stored draws to a statistic, a verdict, advice and a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..data.variables import Variables

Verdict = Literal["pass", "fail"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found.

    Attributes:
        name: As in YAML.
        title: As in the report.
        verdict: ``fail`` when ``p_value`` is below ``threshold``.
        p_value: Of the hypothesis that nothing is wrong; corrected for the number of parameters where there are many.
        threshold: A correct posterior fails this often.
        statistics: Named numbers.
        finding: One sentence: what was seen.
        advice: One sentence: what to do.
        blind_to: One sentence: what this check cannot see.
        curves: The arrays of its figure.
        null: What fails as often as ``threshold`` says.
        panels: Of its figure, side by side.
    """

    name: str
    title: str
    verdict: Verdict
    p_value: float
    threshold: float
    statistics: dict[str, float]
    finding: str
    advice: str
    blind_to: str
    curves: Mapping[str, np.ndarray] = field(repr=False)
    draw: Callable[[CheckResult, Axes], None] = field(repr=False, compare=False)
    null: str = "A correct posterior"
    panels: int = 1

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the figure, on new axes when none are given."""
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.subplots(figsize=(4.5 * self.panels, 3.4), layout="constrained")[1]
        self.draw(self, axes)
        return axes

    def to_json(self) -> dict[str, Any]:
        """Everything but the curves, for ``summary.json``."""
        keys = ("title", "verdict", "p_value", "threshold", "statistics", "finding", "advice", "blind_to")
        return {key: getattr(self, key) for key in keys}


@runtime_checkable
class Check(Protocol):
    """One question asked of a calibration set, or of an attack set; its options are the fields of a frozen dataclass."""

    name: ClassVar[str]

    def __call__(self, found: Any, /) -> CheckResult: ...


@runtime_checkable
class Asks(Protocol):
    """A check that asks the posterior anew, and must be told what x is."""

    def require_fit(self, observables: Variables, *, impute: bool) -> None:
        """Refuse options that do not fit x, before anything runs."""


def verdict(p_value: float, threshold: float) -> Verdict:
    """``fail`` when the p-value is below the threshold."""
    return "fail" if p_value < threshold else "pass"


def says_p(p_value: float) -> str:
    """A p-value as text, no more precise than it is computed."""
    return "p < 1e-10" if p_value < 1e-10 else f"p = {p_value:.2g}"

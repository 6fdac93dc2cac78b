r"""Adversarial attacks: does a small perturbation, chosen badly, move the posterior far?

The hypothesis is that at least half of the observations are moved by no more than ``most`` nats by the smallest perturbation;
the p-value is that of the sign test. An exact posterior can fail: it says that the data decide more sharply than they may be
known, not that training went wrong. Beside the attack stand noise of the same size, the coverage that is left, the local bound
and, where there is a simulator, how much farther from the observation the data lie that the attacked posterior predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy

from ...data.errors import ConfigError, MissingFileError, UnknownNameError, did_you_mean
from ...data.variables import Variables
from ...estimators.base import Posterior, XLike
from ...estimators.robust.balls import ball
from ...simulators.base import Simulator
from ...simulators.block import Protection
from ..base import CheckResult, says_p, verdict
from ..plots import draw_attack_check
from .attack import AttackSet, attack, evaluations, require_at_least
from .region import UNITS
from .search import SEARCHES

BLIND_TO = (
    "An attack that was not found may be worse than the one that was; errors of the model that are larger than the "
    "perturbation, or of another kind, are not looked for."
)
_LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Attack:
    """Perturbations of several sizes.

    Args:
        eps: Sizes, in units of the spread of the data; the smallest is judged.
        norm: ``l1``, ``l2`` or ``linf``.
        units: ``global`` or ``feature``.
        noise: Standard deviation of the measurement errors, one number or one per entry of x, in place of ``units``.
        fixed: Observables that stay as they are; context and masks always do.
        search: ``pgd``, ``adam`` or ``random``.
        steps: Of the search.
        restarts: Of the search.
        observations: How many of the held-out pairs are attacked.
        predictive_draws: So many simulations from the posterior of each of the first 25, clean and for every size; 0 for none.
        most: Nats that the median observation may be moved by the smallest perturbation.
        alpha: A posterior for which the median is just that fails this often.
    """

    eps: Sequence[Any] = (0.1, 0.3, 1.0)
    norm: str = "l2"
    units: str = "global"
    noise: Any = None
    fixed: Sequence[str] = ()
    search: str = "pgd"
    steps: int = 200
    restarts: int = 1
    observations: int = 100
    predictive_draws: int = 10
    most: float = 1.0
    alpha: float = 1e-3
    name: ClassVar[str] = "attack"

    def __post_init__(self) -> None:
        for option in ("eps", "fixed", "noise"):
            if isinstance(value := getattr(self, option), list):
                object.__setattr__(self, option, tuple(value))
        sizes = self.eps if isinstance(self.eps, tuple) else (self.eps,)
        if not sizes or not all(_positive(size) for size in sizes):
            raise ConfigError(f"`eps` must be positive numbers; got {self.eps}")
        object.__setattr__(self, "eps", tuple(sorted(sizes)))
        ball(str(self.norm))
        if self.search not in SEARCHES:
            raise UnknownNameError(f"unknown `search` `{self.search}`; {did_you_mean(self.search, SEARCHES)}")
        if self.units not in UNITS:
            raise UnknownNameError(f"unknown `units` `{self.units}`; {did_you_mean(self.units, UNITS)}")
        counts = {option: getattr(self, option) for option in ("steps", "restarts", "observations", "predictive_draws")}
        require_at_least(counts, {"observations": 10, "predictive_draws": 0})
        for option in ("most", "alpha"):
            if not _positive(getattr(self, option)):
                raise ConfigError(f"`{option}` must be a positive number; got {getattr(self, option)!r}")
        noise = self.noise if isinstance(self.noise, tuple) else (self.noise,)
        if self.noise is not None and not (noise and all(_positive(sd) for sd in noise)):
            raise ConfigError(f"`noise` must be positive, one number or one for each entry of x; got {self.noise!r}")
        if isinstance(self.fixed, str):
            object.__setattr__(self, "fixed", (self.fixed,))

    def require_fit(self, observables: Variables, *, impute: bool = False) -> None:
        """Refuse options that do not fit x.

        Raises:
            UnknownNameError: ``fixed`` names no observable.
            ConfigError: ``noise`` has another size, or entries of x may be missing.
        """
        if impute:
            raise ConfigError(
                "needs all of x, and `on_invalid: impute` lets entries be missing: use `mask`, or leave it out"
            )
        if unknown := set(self.fixed) - set(observables.names):
            raise UnknownNameError(f"`fixed` must name observables; {did_you_mean(min(unknown), observables.names)}")
        entries = sum(v.size for v in observables)
        if isinstance(self.noise, tuple) and len(self.noise) != entries:
            raise ConfigError(
                f"`noise` must be one number, or one for each of the {entries} entries of x; got {len(self.noise)}"
            )

    @property
    def evaluations(self) -> int:
        """How often the search asks the posterior, of all observations at once."""
        return len(self.eps) * evaluations(SEARCHES[self.search], self.steps, self.restarts)

    def attack(
        self,
        posterior: Posterior,
        theta: np.ndarray,
        x: XLike,
        *,
        simulator: Simulator | None = None,
        protection: Protection | None = None,
        seed: int = 0,
        parts: Path | None = None,
        progress: Callable[[int], None] = lambda evaluations: None,
    ) -> AttackSet:
        """Attack the first observations; coverage is of theirs, and so are predictions where there is a simulator."""
        rows = posterior.observables.rows(x)
        some = {name: values[: self.observations] for name, values in rows.items()}
        return attack(
            posterior,
            some,
            self.eps,
            theta=theta[: self.observations],
            norm=self.norm,
            divergence="attacked_clean" if hasattr(posterior, "rsample_stratified") else "clean_attacked",
            search=self.search,
            units=self.units,
            noise=self.noise,
            fixed=self.fixed,
            steps=self.steps,
            restarts=self.restarts,
            simulator=simulator,
            predictive_draws=self.predictive_draws,
            protection=protection,
            seed=seed,
            parts=parts,
            progress=progress,
        )

    def __call__(self, found: AttackSet) -> CheckResult:
        moved = found.moved[found.formula][0]
        p_value = float(scipy.stats.binom.cdf((moved <= self.most).sum(), len(moved), 0.5))
        finding, advice = self._words(found, p_value)
        return CheckResult(
            name=self.name,
            title="Adversarial robustness",
            verdict=verdict(p_value, self.alpha),
            p_value=p_value,
            threshold=self.alpha,
            statistics={name: float(value) for name, value in _statistics(found).items() if math.isfinite(value)},
            finding=finding,
            advice=advice,
            blind_to=BLIND_TO,
            curves={"moved": found.moved[found.formula], "eps": found.eps},
            draw=lambda result, axes: draw_attack_check(found, result, axes),
            null="A posterior just at the limit",
            panels=2,
        )

    def _words(self, found: AttackSet, p_value: float) -> tuple[str, str]:
        size = found.eps[0]
        median, noise = (
            max(float(np.median(moved[found.formula][0])), 0.0) for moved in (found.moved, found.moved_by_noise)
        )
        unit = "standard deviations of the noise" if self.noise is not None else "times the spread of the data"
        finding = (
            f"the worst perturbation of {size:g} {unit} ({found.norm}) moves the median posterior by {median:.2g} nats"
            f"{_beside_the_bound(found)}, noise of that size by {noise:.2g}{_left(found)}{_predicted(found)} "
            f"({says_p(p_value)} for at most {self.most:g} nats)"
        )
        if p_value >= self.alpha:
            return finding, "Nothing to do."
        return finding, (
            "Errors in the data that the simulator does not have can mislead this posterior: train with "
            "`fisher: {beta: ...}`, which makes it wider and steadier, or simulate the errors that real data have."
        )


def _beside_the_bound(found: AttackSet) -> str:
    return f" ({found.times_bound()[0]:.2g} times the local bound)" if len(found.bound) else ""


def _left(found: AttackSet) -> str:
    return f"; {found.coverage(_LEVEL)[1]:.0%} of 90 % regions still hold the truth" if len(found.ranks) else ""


def _predicted(found: AttackSet) -> str:
    """Nothing where nothing could be simulated."""
    if not len(found.predictive) or not (times := found.distance()[1] / found.distance()[0]) < math.inf:
        return ""
    return (
        f"; data simulated from the attacked posterior lie {times:.3g} times as far from the observation as those from the "
        "clean one"
    )


def _statistics(found: AttackSet) -> dict[str, float]:
    """Medians over observations, by size."""
    moved, by_noise = (np.median(moved[found.formula], 1) for moved in (found.moved, found.moved_by_noise))
    statistics = _by_size("median_", found, moved) | _by_size("noise_", found, by_noise)
    statistics["times_noise"] = moved[0] / max(by_noise[0], 1e-7)
    if len(found.ranks):
        statistics["coverage_0.9"], *under = found.coverage(_LEVEL)
        statistics |= _by_size("coverage_0.9_at_", found, under)
    if len(found.bound):
        statistics |= _by_size("bound_", found, np.median(found.bound, 1))
        statistics |= _by_size("times_bound_", found, found.times_bound())
    if len(found.predictive):
        statistics["distance"], *attacked = found.distance()
        statistics |= _by_size("distance_at_", found, attacked)
    return statistics


def _by_size(name: str, found: AttackSet, values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {f"{name}{size:g}": value for size, value in zip(found.eps, values, strict=True)}


def ask(check: Any, calibration: Any, attacked: AttackSet | None) -> CheckResult:
    """A check's result, from what it is a function of.

    Raises:
        MissingFileError: What attacks made is not there.
    """
    if isinstance(check, Attack) and attacked is None:
        raise MissingFileError(
            "attack.zarr is missing from the run folder: remove calibration.zarr as well, and `simfer run` makes both again"
        )
    return check(attacked if isinstance(check, Attack) else calibration)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0

r"""Attacks of any posterior, and what they did to it: divergences over ε, coverage under attack, beside noise of the same size.

For every observation the worst :math:`\tilde x` in a ball around x, as Gloeckler, Deistler & Macke (2023),
https://arxiv.org/abs/2305.14984, look for it; their settings are the defaults.
Under L2 a local bound, :math:`\frac12 r^2 \lambda_{\max}(F(x))` with the Fisher information in the units of the ball, says what
the worst perturbation can do while it is small (`robust.information`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...data.errors import ConfigError, ShapeError, UnknownNameError, UnsupportedError, did_you_mean
from ...data.parts import kept
from ...data.ranges import OutsideTrainingWarning
from ...data.results import read_tree, tree, write_tree
from ...data.variables import Arrays, Variables
from ...estimators.base import Posterior, XLike, named_rows, seeded
from ...estimators.robust.balls import Ball, ball
from ...estimators.robust.information import fisher_eigenvalue
from ...simulators.base import Simulator
from ...simulators.block import Protection
from .divergences import ATTACKED_CLEAN, CLEAN_ATTACKED, DIVERGENCES, Divergence
from .predictive import Predictive
from .region import Region, region
from .search import SEARCHES, Search, noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 1e-7  # nats: what less cannot be told from none
_AT_ONCE = 2**18  # draws × observations in one evaluation: what memory holds
_EVALUATION = {"attacked_clean": ATTACKED_CLEAN, "clean_attacked": CLEAN_ATTACKED}


@dataclass(frozen=True, slots=True)
class AttackSet:
    """Observations, what attacks and noise made of them, and how far the posterior moved.

    Attributes:
        observables: What x consists of.
        norm: Of the ball.
        eps: Sizes, in units of the data.
        radius: Sizes, in the units of the ball.
        x: All entries of each observation.
        attacked: The worst that was found of each, for every size.
        noisy: A uniform draw of the ball around each.
        moved: Formula → divergence of each attacked observation in nats.
        moved_by_noise: The same of noise.
        ranks: Share of draws that are denser than the truth: of clean observations, then for every size; empty without
            truths.
        bound: ½ r² λ_max(F) of each observation in nats, for every size; empty but for L2 and normalised densities.
        predictive: Median distance from the first clean observations to data that are simulated from their posteriors, in the
            units of the ball: clean, then attacked for every size; empty without a simulator.
    """

    observables: Variables
    norm: str
    eps: Float[np.ndarray, "size"]
    radius: Float[np.ndarray, "size"]
    x: Float[np.ndarray, "observation entry"]
    attacked: Float[np.ndarray, "size observation entry"]
    noisy: Float[np.ndarray, "size observation entry"]
    moved: Mapping[str, Float[np.ndarray, "size observation"]]
    moved_by_noise: Mapping[str, Float[np.ndarray, "size observation"]]
    ranks: Float[np.ndarray, "sets truth"] = field(default_factory=lambda: np.empty((0, 0)))
    bound: Float[np.ndarray, "sizes bounded"] = field(default_factory=lambda: np.empty((0, 0)))
    predictive: Float[np.ndarray, "predictive_sets predicted"] = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def formula(self) -> str:
        """The divergence that figures show: KL(q(.|x~) || q(.|x)) where there is one."""
        return next(iter(self.moved))

    def median(self, formula: str | None = None) -> Float[np.ndarray, "size"]:
        """Median over observations of a divergence under attack."""
        return np.median(self.moved[formula or self.formula], 1)

    def coverage(self, level: float = 0.9) -> Float[np.ndarray, "sets"]:
        """How often the region of highest density of this credibility holds the truth: clean, then for every size."""
        return (self.ranks <= level).mean(1)

    def times_bound(self) -> Float[np.ndarray, "size"]:
        """Median divergence under attack over the median local bound, for every size there is one of."""
        return self.median()[: len(self.bound)] / np.maximum(np.median(self.bound, 1), _LEAST)

    def distance(self) -> Float[np.ndarray, "sets"]:
        """Median over observations of `predictive`, of those that could be simulated every time: clean, then for every size."""
        known = np.isfinite(self.predictive).all(0)
        return np.median(self.predictive[:, known], 1) if known.any() else np.full(len(self.predictive), np.nan)

    def worst(self, size: int = 0) -> int:
        """Which observation the attack of this size moves the posterior of most."""
        return int(np.argmax(self.moved[self.formula][size]))

    def plot(self, axes: Axes | None = None) -> Axes:
        """Divergence over ε, with noise of the same size."""
        from ..plots import draw_attack

        return draw_attack(self, axes)

    def save(self, path: Path) -> None:
        """Write as a DataTree in Zarr."""
        import xarray as xr

        sized = ("size", "observation")
        arrays: dict[str, Any] = {
            "eps": ("size", self.eps),
            "radius": ("size", self.radius),
            "x": (("observation", "entry"), self.x),
            "attacked": ((*sized, "entry"), self.attacked),
            "noisy": ((*sized, "entry"), self.noisy),
            "ranks": (("sets", "truth"), self.ranks),
        }
        if len(self.bound):
            arrays["bound"] = sized, self.bound
        if len(self.predictive):
            arrays["predictive"] = ("predictive_sets", "predicted"), self.predictive
        for name, formula in _EVALUATION.items():
            if formula in self.moved:
                arrays[name], arrays[f"{name}_noise"] = (
                    (sized, self.moved[formula]),
                    (sized, self.moved_by_noise[formula]),
                )
        described = {"norm": self.norm, "observables": self.observables.to_json()}
        write_tree(tree({"attack": xr.Dataset(arrays)}, described), path)

    @classmethod
    def load(cls, path: Path) -> AttackSet:
        """Read what `save` wrote.

        Raises:
            MissingFileError: Nothing there.
        """
        found = read_tree(path)
        arrays = {str(name): values.to_numpy() for name, values in found["attack"].data_vars.items()}
        moved, by_noise = (
            {f: arrays.pop(name + end) for name, f in _EVALUATION.items() if name + end in arrays}
            for end in ("", "_noise")
        )
        observables = Variables.from_json(found.attrs["observables"])
        return cls(observables, found.attrs["norm"], **arrays, moved=moved, moved_by_noise=by_noise)


def attack(
    posterior: Posterior,
    x: XLike,
    eps: float | Sequence[float] = (0.1, 0.3, 1.0),
    *,
    theta: Any = None,
    norm: str = "l2",
    divergence: str | Divergence = "attacked_clean",
    search: str = "pgd",
    units: str = "global",
    noise: Any = None,
    fixed: Collection[str] = (),
    clip: bool = True,
    steps: int = 200,
    draws: int = 5,
    restarts: int = 1,
    evaluation: int = 256,
    coverage_draws: int = 1000,
    bound_draws: int = 1000,
    simulator: Simulator | None = None,
    predictive_draws: int = 10,
    protection: Protection | None = None,
    seed: int = 0,
    parts: Path | None = None,
    progress: Callable[[int], None] = lambda evaluations: None,
) -> AttackSet:
    """Look for the perturbation of each observation, of at most a given size, that moves its posterior most.

    Args:
        posterior: With gradients in x. One of Markov chains needs ``divergence="clean_attacked"``.
        x: One row per observation, all attacked at once.
        eps: Sizes, in ``units``.
        theta: The truth of each, shape ``(observation, parameter)``; with it coverage under attack is measured.
        norm: ``l1``, ``l2`` or ``linf``.
        divergence: What is raised: ``attacked_clean`` KL(q(.|x~) || q(.|x)), ``clean_attacked`` KL(q(.|x) || q(.|x~)), ``mmd``,
            or `Away` from or `Toward` some theta.
        search: ``pgd``, ``adam``, ``random`` (without gradients) or ``noise``.
        units: What ε = 1 is: ``global`` or ``feature``; see `region`.
        noise: Standard deviations or covariance of measurement errors, which then are the unit.
        fixed: Observables that stay as they are, besides the context and the masks that the estimator knows.
        clip: Whether to stay within the range of the data, besides what their support demands.
        steps: Of each search.
        draws: For each estimate of a divergence while searching.
        restarts: Searches from other starts, of which the best is kept.
        evaluation: Draws for the divergences that are reported.
        coverage_draws: Draws for each rank.
        bound_draws: Draws for each local bound.
        simulator: With it data are simulated from clean and attacked posteriors of the first 25 observations.
        predictive_draws: So many for each; 0 for none.
        protection: Against simulations that fail.
        seed: Of starts and draws.
        parts: Folder that keeps what is found for each size, so that the same call goes on where an earlier one was asked to stop.
        progress: Called with the number of evaluations made since the last call.

    Raises:
        ConfigError: A size that is not positive, or a ball that holds all data.
        UnknownNameError: No such norm, divergence, search or units.
        UnsupportedError: A posterior whose draws have no gradient, where the divergence needs one.
        ShapeError: Names or shapes do not fit, or those of the simulator.
        NotFiniteError: An entry of x is no number.
    """
    if not posterior.differentiable:
        raise UnsupportedError(
            f"an attack needs a density with gradients in x, which {type(posterior).__name__} has not: attack a network "
            "that was trained without `symmetry`, or with `symmetry: {by: augmentation}`"
        )
    rows = {name: values.detach().cpu().numpy() for name, values in named_rows(x, posterior.observables).items()}
    known = estimator.settings.fixed if (estimator := getattr(posterior, "estimator", None)) else ()
    where = region(posterior.observables, rows, units=units, noise=noise, fixed={*fixed, *known}, clip=clip)
    sizes = np.atleast_1d(np.asarray(eps, dtype=float))
    around, raised = ball(norm), _named(divergence, DIVERGENCES, "divergence")
    find = _named(search, SEARCHES, "search")
    _check_sizes(sizes, where, around, clip)
    numbers = {"steps": steps, "draws": draws, "restarts": restarts, "evaluation": evaluation}
    numbers |= {"coverage_draws": coverage_draws, "bound_draws": bound_draws, "predictive_draws": predictive_draws}
    require_at_least(numbers, {"draws": 2 if divergence == "mmd" else 1, "bound_draws": 2, "predictive_draws": 0})
    replicates = None
    if simulator is not None and predictive_draws:
        replicates = Predictive(simulator, predictive_draws, protection or Protection(), seed)
        replicates.require_fit(posterior)
    truths = None if theta is None else _truths(theta, posterior, len(where.x))
    plan = _Plan(posterior, raised, find, around, steps, draws, restarts, evaluation, progress)
    part, radii = _Parts(parts, seed), [float(size * where.unit) for size in sizes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideTrainingWarning)  # attacks leave the data; that is what they are for
        attacked = part.stacked("attack", plan.worst, [(where, radius) for radius in radii], plan.known)
        noisy = part.stacked("noise", _noisy, [(where, around, radius) for radius in radii])
        each = [where.x, *attacked]
        measured: dict[str, Any] = {
            name: {
                _EVALUATION[of]: part.stacked(f"{name}-{of}", plan.measured, [(of, where, x) for x in found]).numpy()
                for of in plan.measurable
            }
            for name, found in (("moved", attacked), ("moved_by_noise", noisy))
        }
        if truths is not None:
            ranked = [(posterior, where.named(x), truths, coverage_draws) for x in each]
            measured["ranks"] = part.stacked("ranks", _ranks, ranked).numpy()
        if replicates:
            predicted = [(posterior, where, around, x) for x in each]
            measured["predictive"] = part.stacked("predictive", replicates.distance, predicted).numpy()
        if norm == "l2" and posterior.normalised:
            (largest,) = part.stacked("bound", _largest, [(posterior, where, bound_draws, seed)])
            measured["bound"] = 0.5 * np.square(radii)[:, None] * largest.numpy()
    before, after, aside = (values.double().numpy() for values in (where.x, attacked, noisy))
    return AttackSet(posterior.observables, norm, sizes, np.array(radii), before, after, aside, **measured)


class _Parts(NamedTuple):
    """What is made one by one, each with random numbers of its own, and kept while the rest is made."""

    folder: Path | None
    seed: int

    def stacked(
        self,
        name: str,
        make: Callable[..., Tensor],
        asked: Sequence[tuple[Any, ...]],
        known: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """What is made of each of the arguments; ``known`` is called for each that was kept before."""
        made = []
        for k, arguments in enumerate(asked):
            file = self.folder / f"{name}-{k}.npz" if self.folder else None
            if file and file.is_file():
                known()
            with seeded(int(np.random.SeedSequence((self.seed, 13, *f"{name}-{k}".encode())).generate_state(1)[0])):
                made.append(torch.from_numpy(kept(file, partial(_arrays, make, arguments))["made"]))
        return torch.stack(made)


def _arrays(make: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Arrays:
    return {"made": make(*arguments).cpu().numpy()}


def evaluations(find: Search, steps: int, restarts: int) -> int:
    """How often an attack of one size asks the posterior, of all observations at once."""
    return 0 if find is SEARCHES["noise"] else restarts * (steps + (find is SEARCHES["random"]))


@dataclass(frozen=True, slots=True)
class _Plan:
    """How each size is attacked."""

    posterior: Posterior
    divergence: Divergence
    find: Search
    ball: Ball
    steps: int
    draws: int
    restarts: int
    evaluation: int
    progress: Callable[[int], None]

    def worst(self, where: Region, radius: float) -> Float[Tensor, "rows entry"]:
        """The best of all restarts."""
        clean = where.named(where.x)
        moved = self.divergence(self.posterior, clean, self.draws)

        def objective(x: Tensor) -> Tensor:
            self.progress(1)
            return moved(where.named(x))

        found = (self.find(objective, where, self.ball, radius, self.steps) for _ in range(self.restarts))
        tries = torch.stack([where.settled(where.at(u), self.ball, radius) for u in found])
        if self.restarts == 1:
            return tries[0]
        judged = self.divergence(self.posterior, clean, self.evaluation)
        with torch.no_grad():
            best = torch.stack([judged(where.named(x)) for x in tries]).argmax(0).to(tries.device)
        return tries[best, torch.arange(len(best))]

    def known(self) -> None:
        """What `worst` tells of its progress, at once."""
        self.progress(evaluations(self.find, self.steps, self.restarts))

    @property
    def measurable(self) -> list[str]:
        """Both KL divergences, as far as the posterior has them."""
        return list(_EVALUATION) if hasattr(self.posterior, "rsample_stratified") else ["clean_attacked"]

    @torch.no_grad()
    def measured(self, of: str, where: Region, found: Float[Tensor, "rows entry"]) -> Float[Tensor, "rows"]:
        portions = zip(*(rows.split(max(1, _AT_ONCE // self.evaluation)) for rows in (where.x, found)), strict=True)
        values = [
            DIVERGENCES[of](self.posterior, where.named(x), self.evaluation)(where.named(attacked))
            for x, attacked in portions
        ]
        return torch.cat(values).double()


def _noisy(where: Region, around: Ball, radius: float) -> Tensor:
    return where.settled(where.at(noise(where, around, radius)), around, radius)


def _largest(posterior: Posterior, where: Region, draws: int, seed: int) -> Float[Tensor, "observation"]:
    return fisher_eigenvalue(posterior, where.named(where.x), draws=draws, seed=seed, coordinates=where.gradient)


def _ranks(posterior: Posterior, x: dict[str, Tensor], theta: np.ndarray, draws: int) -> Float[Tensor, "truth"]:
    _, log_q = posterior.sample_with_log_prob((draws,), x)
    return (log_q > posterior.log_prob_batched(torch.as_tensor(theta)[None], x)).double().mean(0)


def require_at_least(numbers: Mapping[str, Any], least: Mapping[str, int] = MappingProxyType({})) -> None:
    """Refuse counts that are too small.

    Raises:
        ConfigError: The first that is.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least.get(name, 1):
            raise ConfigError(f"`{name}` must be a whole number, {least.get(name, 1)} at least; got {value!r}")


def _truths(theta: Any, posterior: Posterior, rows: int) -> np.ndarray:
    truths = np.asarray(theta, dtype=float)
    if truths.shape != (rows, posterior.prior.dim):
        raise ShapeError(f"`theta` must have shape {(rows, posterior.prior.dim)}, as x has; got {truths.shape}")
    return truths


def _check_sizes(sizes: np.ndarray, where: Region, around: Ball, clip: bool) -> None:
    if not sizes.size or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ConfigError(f"`eps` must be positive; got {', '.join(f'{size:g}' for size in sizes) or 'none'}")
    if not clip or where.factor.dim() == 2:
        return
    widest = float(around.norm((((where.high - where.low) / where.factor) * where.free)[None])) / where.unit
    if sizes.max() > widest:
        raise ConfigError(
            f"`eps` must be below {widest:.3g}, at which every observation could become every other; got {sizes.max():g} (where "
            "entries differ in kind: `units: feature`)"
        )


_Kind = TypeVar("_Kind")


def _named(given: str | _Kind, known: Mapping[str, _Kind], what: str) -> _Kind:
    if not isinstance(given, str):
        return given
    if given not in known:
        raise UnknownNameError(f"unknown `{what}` `{given}`; {did_you_mean(given, known)}")
    return known[given]

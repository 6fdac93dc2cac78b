"""Figures: what people would rather look at than read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..data.variables import Variables
    from .attacks.attack import AttackSet
    from .base import CheckResult

INK, ACCENT, PALE = "#1b2a41", "#c8553d", "#b8c4d6"
_CYCLE = ("#1f6f8b", "#c8553d", "#588157", "#8d5a97", "#b08900", "#5c6b73")


def draw_ecdf_difference(result: CheckResult, axes: Axes) -> None:
    """ECDF minus uniform, inside the simultaneous band if all is well."""
    curves = result.curves
    levels = curves["levels"]
    axes.fill_between(levels, curves["lower"] - levels, curves["upper"] - levels, color=PALE, alpha=0.6, lw=0)
    axes.axhline(0, color=INK, lw=0.8)
    ecdfs = {key.removeprefix("ecdf:"): values for key, values in curves.items() if key.startswith("ecdf:")}
    for i, (name, ecdf) in enumerate(ecdfs.items()):
        axes.plot(levels, ecdf - levels, lw=1.6, label=name, color=_CYCLE[i % len(_CYCLE)])
    axes.set(xlabel="nominal level", ylabel="observed − nominal", xlim=(0, 1))
    if 1 < len(ecdfs) <= 12:
        axes.legend(frameon=False, fontsize=8)
    _title(result, axes)


def draw_attack(found: AttackSet, axes: Axes | None = None) -> Axes:
    """Median divergence over ε with its 15-85 % band, under attack and under noise of the same size, beside the local bound."""
    if axes is None:
        import matplotlib.pyplot as plt

        axes = plt.subplots(figsize=(4.5, 3.4), layout="constrained")[1]
    for moved, label, color in (
        (found.moved, "attack", ACCENT),
        (found.moved_by_noise, "noise of that size", _CYCLE[0]),
    ):
        low, median, high = np.quantile(np.clip(moved[found.formula], 1e-7, None), [0.15, 0.5, 0.85], axis=1)
        axes.fill_between(found.eps, low, high, color=color, alpha=0.2, lw=0)
        axes.plot(found.eps, median, "o-", color=color, lw=1.6, ms=4, label=label)
    if len(found.bound):
        axes.plot(found.eps, np.median(found.bound, 1), "--", color=INK, lw=0.9, label="local bound, ½ r² λ")
    axes.set(xscale="log", yscale="log", xlabel=f"size ε of the perturbation ({found.norm})")
    axes.set_ylabel(f"{found.formula} [nats]".replace("~", "′").replace("||", "‖"))
    axes.legend(frameon=False, fontsize=8)
    return axes


def draw_attack_check(found: AttackSet, result: CheckResult, axes: Axes) -> None:
    """Divergence over ε, and the observation that the smallest attack moves most beside its perturbed twin."""
    place = axes.get_subplotspec()
    if place is not None:
        halves = place.subgridspec(1, 2)
        axes.set_subplotspec(halves[0])
        _draw_twins(found, axes.figure.add_subplot(halves[1]))
    draw_attack(found, axes)
    _title(result, axes)


def _draw_twins(found: AttackSet, axes: Axes) -> None:
    worst = found.worst()
    index = np.arange(1, found.x.shape[1] + 1)
    axes.plot(index, found.x[worst], color=_CYCLE[0], lw=1.4, label="as observed")
    axes.plot(
        index,
        found.attacked[0, worst],
        color=ACCENT,
        lw=1.0,
        label=f"moved {found.moved[found.formula][0, worst]:.2g} nats",
    )
    axes.set(xlabel="entry of x", ylabel="x")
    axes.set_title(f"worst of {len(found.x)}, ε = {found.eps[0]:g}", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8)


def draw_predictive(result: CheckResult, axes: Axes) -> None:
    """Replicated data as bands, the observation as points; the first observable only."""
    name = next(key for key in result.curves if key.startswith("observed:")).removeprefix("observed:")
    replicates, observed = result.curves[f"replicates:{name}"], result.curves[f"observed:{name}"]
    index = np.arange(1, len(observed) + 1)
    for low, high, alpha in ((0.05, 0.95, 0.35), (0.25, 0.75, 0.6)):
        band = np.quantile(replicates, [low, high], axis=0)
        axes.fill_between(index, *band, color=PALE, alpha=alpha, lw=0, label=f"{high - low:.0%} of replicates")
    axes.plot(index, np.median(replicates, axis=0), color=_CYCLE[0], lw=1.4, label="median")
    axes.plot(index, observed, "o", ms=4, color=ACCENT, label="observed")
    axes.set(xlabel=f"entry of {name}", ylabel=name)
    axes.legend(frameon=False, fontsize=8)
    _title(result, axes)


def plot_losses(train: Sequence[float], validation: Sequence[float]) -> Figure:
    """Training and validation loss by epoch."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.5, 3.0), layout="constrained")
    epochs = np.arange(1, len(train) + 1)
    axes.plot(epochs, train, color=_CYCLE[0], lw=1.4, label="training")
    axes.plot(epochs, validation, color=ACCENT, lw=1.4, label="validation")
    best = int(np.argmin(validation))
    axes.plot(epochs[best], validation[best], "o", color=ACCENT, ms=5, label="kept")
    axes.set(xlabel="epoch", ylabel="loss [nats per row]")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_tradeoff(fisher: Mapping[str, Any]) -> Figure:
    """What robustness costs: the held-out loss over the information in x, a point for every β that was trained with.

    Args:
        fisher: What `estimators.robust.tradeoff` found.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(figsize=(4.5, 3.0), layout="constrained")
    kind = "trace" if "trace" in fisher else "largest"
    information, losses = ([point[key] for point in fisher["curve"]] for key in (kind, "loss"))
    axes.plot(information, losses, "o-", color=_CYCLE[0], lw=1.2, ms=4)
    axes.plot(fisher[kind], fisher["loss"], "o", color=ACCENT, ms=8, label=f"kept: β = {fisher['beta']:.2g}")
    axes.axhline(fisher["limit"], color="0.5", ls="--", lw=1.0, label="what may be paid")
    for point in fisher["curve"]:
        label = f"{point['beta']:.1g}" if point["beta"] else "none"
        axes.annotate(label, (point[kind], point["loss"]), (4, 4), textcoords="offset points", fontsize=7)
    name = "trace" if kind == "trace" else "largest eigenvalue"
    axes.set(xscale="log", xlabel=f"Fisher information in x ({name})", ylabel="held-out −log q [nats]")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_corner(
    draws: np.ndarray, parameters: Variables, prior: np.ndarray | None = None, reference: np.ndarray | None = None
) -> Figure:
    """Marginals and pairs of posterior draws.

    Args:
        draws: ``(draw, parameter)``.
        parameters: Names, labels and units.
        prior: Draws from the prior, drawn pale behind the marginals.
        reference: Another sample, drawn as outlines: a reference posterior, say.
    """
    import matplotlib.pyplot as plt

    size = len(parameters)
    figure, grid = plt.subplots(size, size, figsize=(1.9 * size + 0.8,) * 2, squeeze=False, layout="constrained")
    limits = [_limits(draws[:, i]) for i in range(size)]
    for (row, column), axes in np.ndenumerate(grid):
        if column > row:
            axes.set_visible(False)
            continue
        if row == column:
            _marginal(axes, row, limits[row], draws, prior, reference)
        else:
            _pair(axes, (column, row), (limits[column], limits[row]), draws, reference)
        _label(axes, parameters, row, column, size)
    return figure


def _marginal(axes: Axes, i: int, limits: tuple[float, float], draws: np.ndarray, *others: np.ndarray | None) -> None:
    bins = np.linspace(*limits, 41)
    prior, reference = others
    if prior is not None:
        axes.hist(prior[:, i], bins=bins.tolist(), weights=_inside_density(prior[:, i], bins), color=PALE, alpha=0.6)
    axes.hist(draws[:, i], bins=bins.tolist(), density=True, histtype="stepfilled", color=_CYCLE[0], alpha=0.75)
    if reference is not None:
        axes.hist(reference[:, i], bins=bins.tolist(), density=True, histtype="step", color=ACCENT, lw=1.3)
    axes.set(xlim=limits, yticks=[])


def _inside_density(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Weights that make a histogram a density over all of the values, not only those inside the bins."""
    return np.full(len(values), 1 / (len(values) * (bins[1] - bins[0])))


def _pair(axes: Axes, which: tuple[int, int], limits: Any, draws: np.ndarray, reference: np.ndarray | None) -> None:
    _contours(axes, draws[:, which], limits, filled=True)
    if reference is not None:
        _contours(axes, reference[:, which], limits, filled=False)
    axes.set(xlim=limits[0], ylim=limits[1])


def _contours(axes: Axes, pair: np.ndarray, limits: Any, *, filled: bool) -> None:
    """Regions of 50 % and 90 % of the draws, from a lightly smoothed histogram."""
    from scipy.ndimage import gaussian_filter

    counts, x, y = np.histogram2d(pair[:, 0], pair[:, 1], bins=40, range=limits)
    smooth = gaussian_filter(counts, 1.0).T
    ordered = np.sort(smooth.ravel())[::-1]
    mass = np.cumsum(ordered) / max(ordered.sum(), 1e-300)
    levels = sorted({float(ordered[np.searchsorted(mass, level)]) for level in (0.9, 0.5)})
    centres = (x[:-1] + x[1:]) / 2, (y[:-1] + y[1:]) / 2
    if filled:
        axes.contourf(
            *centres, smooth, levels=[*levels, float(smooth.max()) * 1.01 + 1e-9], colors=["#8fb9c6", _CYCLE[0]]
        )
    else:
        axes.contour(*centres, smooth, levels=levels, colors=ACCENT, linewidths=1.0)


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _label(axes: Axes, parameters: Variables, row: int, column: int, size: int) -> None:
    titles = [variable.title for variable in parameters]
    axes.tick_params(labelsize=7, labelbottom=row == size - 1, labelleft=column == 0 and row > 0)
    if row == size - 1:
        axes.set_xlabel(titles[column])
    if column == 0 and row > 0:
        axes.set_ylabel(titles[row])


def _title(result: CheckResult, axes: Axes) -> None:
    colour = "#2e7d32" if result.passed else ACCENT
    axes.set_title(f"{result.title} — {result.verdict}", fontsize=9, color=colour)

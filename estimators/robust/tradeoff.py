r"""How much accuracy to give for robustness: the weight β of the Fisher information by a stated trade-off.

β is the largest for which the held-out −log q lies no more than ``price`` nats per parameter above that of training without
(.25 nats: widths grow by a factor of about 1.3). With L the held-out −log q, φ_0 what is learned without and φ_β with the term,

.. math:: L(\phi_\beta) + \beta\, \mathrm{tr} F(\phi_\beta) \le L(\phi_0) + \beta\, \mathrm{tr} F(\phi_0)
    \quad\Rightarrow\quad L(\phi_\beta) - L(\phi_0) \le \beta\, \mathrm{tr} F(\phi_0),

so that :math:`\beta = \mathrm{price} \cdot d / \mathrm{tr} F(\phi_0)` can be afforded by a training that finds its minimum. From
there β goes up by factors of four until it costs too much; or down, where training did not find the minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...data.batch import Batch
from ...data.errors import UnsupportedError
from ..base import Estimator
from ..settings import FisherSettings, TrainingSettings
from .fisher import FisherPenalty

if TYPE_CHECKING:
    from ..training import History

_FACTOR = 4.0
Fitted = tuple[Estimator, "History"]
Fit = Callable[[TrainingSettings, str], Fitted]


def trade_off(fit: Fit, training: TrainingSettings, parameters: int, held_out: Callable[[], Iterable[Batch]]) -> Fitted:
    """Train with several β and keep the largest that can be afforded; none where none can.

    Args:
        fit: Trains from the start with these settings, under this name; a training of that name which is there is taken.
        training: With ``fisher: {beta: auto}``.
        parameters: How many theta has.
        held_out: Rows that nothing is learned from.

    Returns:
        The estimator and its history, whose facts have the ``curve``: β, tr F and the loss without it, of every training.

    Raises:
        UnsupportedError: A loss that is not -log q, or a posterior that does not depend on x.
    """
    assert training.fisher is not None
    kept = fit(training.model_copy(update={"fisher": None}), "beta_0")
    _require_log_density(kept[0])
    curve = [_without(training.fisher, kept[0], held_out())]
    if not curve[0][training.fisher.kind] > 0:
        raise UnsupportedError("`beta: auto` needs a posterior that depends on x: give a number, or leave `fisher` out")
    limit = curve[0]["loss"] + training.fisher.price * parameters
    beta = training.fisher.price * parameters / curve[0][training.fisher.kind]
    seconds, factor = kept[1].seconds, _FACTOR
    for k in range(1, training.trainings):
        settled = training.fisher.model_copy(update={"beta": beta})
        tried = fit(training.model_copy(update={"fisher": settled}), f"beta_{k}")
        seconds += tried[1].seconds
        curve.append(tried[1].facts["fisher"])
        affordable = curve[-1]["loss"] <= limit
        if affordable:
            kept = tried
        if k == 1 and not affordable:
            factor = 1 / _FACTOR
        if k > 1 and affordable == (factor < 1):
            break
        beta *= factor
    return kept[0], _with_curve(kept[1], curve, limit, seconds)


def _require_log_density(estimator: Estimator) -> None:
    if estimator.settings.method != "npe":
        raise UnsupportedError(
            f"`beta: auto` needs a loss that is -log q; that of `{estimator.settings.method}` is another: give a number"
        )


def _without(settings: FisherSettings, estimator: Estimator, held_out: Iterable[Batch]) -> dict[str, float]:
    penalty = FisherPenalty(settings.model_copy(update={"beta": 1.0}), estimator.core)
    return penalty.finish(estimator.core, map(estimator.for_core, held_out)) | {"beta": 0.0}


def _with_curve(history: History, curve: list[dict[str, float]], limit: float, seconds: float) -> History:
    chosen: dict[str, Any] = history.facts.get("fisher", curve[0])
    found = {"curve": sorted(curve, key=lambda point: point["beta"]), "limit": limit}
    return replace(history, facts=history.facts | {"fisher": chosen | found}, seconds=seconds)

"""Which network sees which observable, and how its entries are standardised for that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...data.errors import ShapeError, did_you_mean
from ...data.variables import Variable, Variables
from ..settings import EmbeddingSettings, NetworkSettings
from ..structure import Scaling, Sharing
from .base import FLAT, IMAGES, SERIES, SETS, TURNED, channel_axis

_NEEDS = {
    **dict.fromkeys(IMAGES, "2 axes, (row, column), or 3, one of them channels"),
    **dict.fromkeys(SETS, "1 axis, (member,), or 2, one of them channels"),
    **dict.fromkeys(SERIES, "1 axis, (step,), or 2, one of them channels"),
}
_MOST_AS_THEY_ARE = 16  # numbers beside an image or a set that need no network of their own


@dataclass(frozen=True, slots=True)
class Part:
    """One network and what it sees: one observable, or several as one vector."""

    variables: tuple[Variable, ...]
    settings: NetworkSettings

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of what it sees."""
        if len(self.variables) == 1 and self.settings.kind not in FLAT:
            return self.variables[0].shape
        return (sum(variable.size for variable in self.variables),)


def plan(settings: EmbeddingSettings, observables: Variables) -> list[Part]:
    """The networks, those that were asked for first; what none of them sees and what is no mask comes as one vector.

    Raises:
        ShapeError: A network over an observable of a shape it cannot take, an observable or mask that is none.
    """
    if not settings.observables and settings.kind in FLAT:
        return [Part(tuple(observables), settings)]
    chosen = settings.observables or {_only(settings, observables).name: settings}
    _require_names(chosen, observables)
    parts = [Part((variable,), chosen[variable.name]) for variable in observables if variable.name in chosen]
    for part in parts:
        _require_shape(part)
        _require_mask(part, observables)
    masks = {part.settings.mask for part in parts}
    rest = tuple(v for v in observables if v.name not in chosen and v.name not in masks)
    return [*parts, Part(rest, _for_the_rest(rest))] if rest else parts


def scaling(settings: EmbeddingSettings, observables: Variables) -> dict[str, Scaling]:
    """How each observable is standardised: entry by entry for a network over vectors; alike along the axis of members,
    steps, rows and columns for one that treats these alike; and, for a class of one's own, all entries of several axes.
    """
    return {
        variable.name: Scaling(
            part.settings.standardise or _sharing(part, variable),
            channel_axis(variable.shape, part.settings),
            part.settings.mask,
        )
        for part in plan(settings, observables)
        for variable in part.variables
    }


def _sharing(part: Part, variable: Variable) -> Sharing:
    if part.settings.kind in FLAT:
        return "entry"
    if part.settings.kind in TURNED:
        return "all"
    if part.settings.kind in _NEEDS or part.settings.mask:
        return "channel"
    return "entry" if len(variable.shape) < 2 else "all"


def _axes(kind: str) -> tuple[int, ...]:
    return (2, 3) if kind in IMAGES else (1, 2)


def _only(settings: EmbeddingSettings, observables: Variables) -> Variable:
    """The observable that a network for all of x is meant for: the one with most of the axes it can take."""
    free = [variable for variable in observables if variable.name != settings.mask]
    fitting = list(_fitting(settings, free))
    most = max((len(variable.shape) for variable in fitting), default=0)
    best = [variable for variable in fitting if len(variable.shape) == most]
    if len(best) == 1:
        return best[0]
    shapes = ", ".join(f"`{variable.name}` {variable.shape}" for variable in free)
    needs = _NEEDS.get(settings.name, "exactly one observable")
    raise ShapeError(
        f"`{settings.name}` needs an observable of {needs}; x has {shapes}: "
        + ("say which one, or one network each, by `observables:`" if best else f"choose another of {', '.join(FLAT)}")
    )


def _fitting(settings: EmbeddingSettings, observables: list[Variable]) -> Iterator[Variable]:
    for variable in observables:
        own = settings.kind not in _NEEDS
        if own or len(variable.shape) in _axes(settings.name):
            yield variable


def _for_the_rest(rest: tuple[Variable, ...]) -> NetworkSettings:
    size = sum(variable.size for variable in rest)
    return NetworkSettings(kind="none" if size <= _MOST_AS_THEY_ARE else "mlp")


def _require_names(chosen: dict[str, NetworkSettings], observables: Variables) -> None:
    for name in chosen:
        if name not in observables.names:
            raise ShapeError(
                f"`embedding.observables` has no observable `{name}`; {did_you_mean(name, observables.names)}"
            )


def _require_shape(part: Part) -> None:
    (variable,), kind = part.variables, part.settings.name
    if kind in _NEEDS and len(variable.shape) not in _axes(kind):
        raise ShapeError(
            f"`{kind}` needs an observable of {_NEEDS[kind]}; `{variable.name}` has shape {variable.shape}"
        )


def _require_mask(part: Part, observables: Variables) -> None:
    (variable,), name = part.variables, part.settings.mask
    if name is None:
        return
    if name not in observables.names or name == variable.name:
        others = [other for other in observables.names if other != variable.name]
        raise ShapeError(f"`mask` of `{variable.name}` has no observable `{name}`; {did_you_mean(name, others)}")
    if not variable.shape:
        raise ShapeError(f"`mask` needs an observable with members; `{variable.name}` is one number")
    members = variable.shape[Scaling(channel_axis=channel_axis(variable.shape, part.settings)).member_axis]
    if observables[name].shape not in ((), (members,)):
        raise ShapeError(
            f"`mask` of `{variable.name}` must be a number of members, (), or 0 and 1 for each, ({members},); "
            f"`{name}` has shape {observables[name].shape}"
        )

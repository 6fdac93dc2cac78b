"""What a search for hyper-parameters may try: ranges and choices, by the key they have under ``train:``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from ..data.errors import ConfigError, did_you_mean
from .settings import EstimatorSettings, Settings, TrainingSettings

S = TypeVar("S", bound=Settings)

_FORMS = "[low, high], [low, high, log], a list of values, or {choose: [...]}"


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, whole ones if both are; evenly in their logarithm if ``log``."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def examples(self) -> tuple[Any, ...]:
        return self.low, self.high

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int if self.whole else int | float) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    @property
    def examples(self) -> tuple[Any, ...]:
        return self.values

    def __contains__(self, value: object) -> bool:
        return value in self.values


Dimension = Range | Choice


def read_dimension(key: str, given: Any, estimator: EstimatorSettings, training: TrainingSettings) -> Dimension:
    """What may be tried for ``key``, checked against the settings it is one of.

    Raises:
        ConfigError: No such key, neither a range nor a choice, or values that the setting cannot have.
    """
    dimension = _dimension(key, given)
    for value in dimension.examples:
        with_values({key: value}, estimator, training)
    return dimension


def with_values(
    values: Mapping[str, Any], estimator: EstimatorSettings, training: TrainingSettings
) -> tuple[EstimatorSettings, TrainingSettings]:
    """The same settings but for ``values``, whose keys are such as ``learning_rate`` and ``flow.transforms``.

    Raises:
        ConfigError: No such key, or a value it cannot have.
    """
    for key, value in values.items():
        if key.split(".")[0] in TrainingSettings.model_fields:
            training = _with(training, key, value)
        else:
            estimator = _with(estimator, key, value)
    return estimator, training


def value_of(key: str, estimator: EstimatorSettings, training: TrainingSettings) -> Any:
    """The value that ``key`` has, as JSON."""
    value: Any = {**estimator.model_dump(mode="json"), **training.model_dump(mode="json")}
    for part in key.split("."):
        value = value[part]
    return value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"flow.kind": "maf"}`` → ``{"flow": {"kind": "maf"}}``."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        here = tree
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return tree


def _dimension(key: str, given: Any) -> Dimension:
    chosen = isinstance(given, Mapping) and set(given) == {"choose"}
    values = given["choose"] if chosen else given
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"`{key}` must be {_FORMS}; got {given!r}")
    if chosen or not _is_range(values):
        return Choice(tuple(json.loads(json.dumps(list(values)))))
    low, high, *log = values
    if low >= high or (log and low <= 0):
        raise ConfigError(f"`{key}` must have low < high, and low > 0 on a log scale; got {list(values)}")
    return Range(low, high, bool(log))


def _is_range(values: Sequence[Any]) -> bool:
    ends, scale = values[:2], values[2:]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    return len(ends) == 2 and numbers and list(scale) in ([], ["log"])


def _with(settings: S, key: str, value: Any) -> S:
    *path, last = key.split(".")
    tree = settings.model_dump()
    here = tree
    for part in (*path, last):
        if not isinstance(here, dict) or part not in here:
            known = here if isinstance(here, dict) else {}
            fields = known if path else {**EstimatorSettings.model_fields, **TrainingSettings.model_fields}
            raise ConfigError(f"`{key}` is no key of `train:`; {did_you_mean(part, fields)}")
        above, here = here, here[part]
    above[last] = value
    try:
        return type(settings).model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"`{key}` cannot be {value!r}: {error.errors()[0]['msg']}") from error

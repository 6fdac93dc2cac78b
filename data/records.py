"""What one row of a simulation store consists of, and rows of it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .variables import Arrays, Variable, Variables

STATUS = ("pending", "ok", "invalid", "failed", "timeout")
PENDING, OK, INVALID, FAILED, TIMEOUT = range(len(STATUS))
NOTHING = Variables(())
_MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Schema:
    """Which arrays a store has.

    Attributes:
        parameters: What theta consists of.
        observables: What x consists of.
        context: Known nuisance, drawn or given with every row.
        u_shape: Shape of one row's base random numbers; None where they are not recorded.
        grouped: Whether rows belong to groups that must not be split.
    """

    parameters: Variables
    observables: Variables
    context: Variables = NOTHING
    u_shape: tuple[int, ...] | None = None
    grouped: bool = False

    def arrays(self) -> Iterator[tuple[str, Variable, dict[str, Any]]]:
        """Path, shape of a row and attributes of every array that each row fills, ``status`` last."""
        units = {"units": [v.units for v in self.parameters], "long_name": "parameters"}
        yield "theta", Variable("parameters", (len(self.parameters),), "float64", dims=("parameter",)), units
        for prefix, variables in (("", self.observables), ("context/", self.context)):
            for v in variables:
                yield prefix + v.name, v, {"units": v.units, "long_name": v.label or v.name}
        if self.u_shape is not None:
            yield "u", Variable("base", self.u_shape, "float64"), {"long_name": "base random numbers"}
        if self.grouped:
            yield "group", Variable("groups", (), "int64"), {"long_name": "rows that must not be split"}
        yield "runtime", Variable("seconds", (), "float32"), {"units": "s"}
        flags = {"flag_values": list(range(len(STATUS))), "flag_meanings": " ".join(STATUS)}
        yield "status", Variable("flag", (), "int8"), flags

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters.to_json(),
            "observables": self.observables.to_json(),
            "context": self.context.to_json(),
            "u_shape": None if self.u_shape is None else list(self.u_shape),
            "grouped": self.grouped,
        }

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Schema:
        """Also of attributes that hold more than this, and of version 1, which had only parameters and observables."""
        shape = item.get("u_shape")
        return cls(
            Variables.from_json(item["parameters"]),
            Variables.from_json(item["observables"]),
            Variables.from_json(item.get("context", [])),
            None if shape is None else tuple(shape),
            item.get("grouped", False),
        )


@dataclass(frozen=True, slots=True)
class Records:
    """Some rows.

    Attributes:
        theta: ``(rows, parameter)`` float64.
        x: Observable → ``(rows, *shape)``.
        status: Index into `STATUS`, ``(rows,)`` int8.
        runtime: Seconds a row took, ``(rows,)`` float32.
        context: Name → ``(rows, *shape)``.
        u: ``(rows, *u_shape)``, or None.
        group: ``(rows,)`` int64, or None.
        reason: Why a row is not ok, ``(rows,)`` of text, empty where it is.
    """

    theta: np.ndarray
    x: Arrays
    status: np.ndarray
    runtime: np.ndarray
    context: Arrays = field(default_factory=dict)
    u: np.ndarray | None = None
    group: np.ndarray | None = None
    reason: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.theta)

    def arrays(self) -> Arrays:
        """Path in the store → array, ``status`` last; without ``reason``."""
        optional = {"u": self.u, "group": self.group}
        return {
            "theta": self.theta,
            **self.x,
            **{f"context/{name}": values for name, values in self.context.items()},
            **{name: values for name, values in optional.items() if values is not None},
            "runtime": self.runtime,
            "status": self.status,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, schema: Schema, reason: np.ndarray | None = None) -> Records:
        """The inverse of `arrays`."""
        return cls(
            arrays["theta"],
            {name: arrays[name] for name in schema.observables.names},
            arrays["status"],
            arrays["runtime"],
            {name: arrays[f"context/{name}"] for name in schema.context.names},
            arrays.get("u"),
            arrays.get("group"),
            reason,
        )

    @classmethod
    def join(cls, parts: list[Records], schema: Schema) -> Records:
        """Rows one after another."""
        arrays = [part.arrays() for part in parts]
        reasons = np.concatenate([no_reasons(p.rows) if p.reason is None else p.reason for p in parts])
        joined = {
            name: np.concatenate([a[name] for a in arrays]) if len(arrays) > 1 else arrays[0][name]
            for name in arrays[0]
        }
        return cls.from_arrays(joined, schema, reasons)

    def select(self, index: np.ndarray | slice, schema: Schema) -> Records:
        """Some of the rows."""
        reason = None if self.reason is None else self.reason[index]
        return Records.from_arrays({name: values[index] for name, values in self.arrays().items()}, schema, reason)


def no_reasons(rows: int) -> np.ndarray:
    """Empty text for every row."""
    return np.full(rows, "", dtype=object)


def why_invalid(x: Arrays) -> dict[int, str]:
    """Rows whose x is no number, or one that float32, in which networks compute, cannot hold: the reason of each."""
    if all(_largest(values) <= _MOST for values in x.values()):
        return {}
    finite = {name: _every(np.isfinite(values)) for name, values in x.items()}
    held = {name: _every(np.abs(values) <= _MOST) for name, values in x.items()}
    reasons = {}
    for row in np.flatnonzero(~np.logical_and.reduce(list(held.values()))).tolist():
        lost = [name for name, ok in finite.items() if not ok[row]]
        large = [name for name, ok in held.items() if not ok[row]]
        reasons[row] = f"not finite: {', '.join(lost)}" if lost else f"beyond float32, 3e38: {', '.join(large)}"
    return reasons


def _every(good: np.ndarray) -> np.ndarray:
    """Rows in which all is."""
    return np.asarray(good.reshape(len(good), -1).all(1))


def _largest(values: np.ndarray) -> float:
    """NaN where one is."""
    return max(float(values.max()), -float(values.min())) if values.size else 0.0

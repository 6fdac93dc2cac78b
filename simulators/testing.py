"""The contract of a simulator as tests, for whoever writes one.

Subclass it in a test file and give the simulator; pytest does the rest::

    class TestMySimulator(SimulatorContract):
        @pytest.fixture
        def simulator(self):
            return MySimulator()
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from ..data.observations import read_observation
from ..data.variables import Arrays, Variables
from .base import Simulator, context_of, describe, simulate_checked

_TINY_P = 1e-4  # over all entries of x together: a simulator that keeps the contract fails once in ten thousand


class SimulatorContract:
    """Shapes, dtypes, determinism, row independence and what is optional, for any simulator.

    Attributes:
        rows: Simulations in a batch.
        rows_alone: Simulations of one parameter where the law of a row must be compared; as many again beside it.
        deterministic: Whether the simulator is meant to ignore its generator.
        least_finite: Fraction of the prior's rows that must be finite.
        rtol: Up to which relative difference two numbers are the same, where a batch may be summed in another order.
    """

    rows: ClassVar[int] = 64
    rows_alone: ClassVar[int] = 200
    deterministic: ClassVar[bool] = False
    least_finite: ClassVar[float] = 0.9
    rtol: ClassVar[float] = 1e-6

    @pytest.fixture
    def simulator(self) -> Simulator:
        """The simulator under test; the subclass gives it."""
        raise NotImplementedError("give a `simulator` fixture that returns your simulator")

    @pytest.fixture
    def theta(self, simulator: Simulator) -> np.ndarray:
        """One batch from the prior."""
        return simulator.prior.sample(self.rows, np.random.default_rng(1))

    def test_prior_draws_lie_in_its_support(self, simulator: Simulator, theta: np.ndarray) -> None:
        assert simulator.prior.contains(torch.from_numpy(theta)).all(), "`prior` draws outside its own support"

    def test_shapes_dtypes_and_names(self, simulator: Simulator, theta: np.ndarray) -> None:
        for rows in (1, 2, self.rows):
            _simulate(simulator, theta[:rows], 2)
        x = simulator.simulate(theta, np.random.default_rng(2), *_more(simulator, self.rows))
        for variable in simulator.observables:
            values = np.asarray(x[variable.name])
            fits = np.can_cast(values.dtype, variable.dtype, "same_kind") or _fits(values, variable.dtype)
            assert fits, f"`{variable.name}` must be {variable.dtype}, as observables say; got {values.dtype}"

    def test_most_rows_are_finite(self, simulator: Simulator, theta: np.ndarray) -> None:
        fraction = _finite(_simulate(simulator, theta, 2)).mean()
        assert fraction >= self.least_finite, f"only {fraction:.0%} of the prior's rows are finite"

    def test_values_lie_in_the_observables_support(self, simulator: Simulator, theta: np.ndarray) -> None:
        x = _simulate(simulator, theta, 2)
        for variable in simulator.observables:
            values, support = x[variable.name][_finite(x)], variable.support
            assert ((values >= support.low) & (values <= support.high)).all(), f"`{variable.name}` leaves its support"
            assert not support.integer or (values == np.round(values)).all(), f"`{variable.name}` must be whole numbers"

    def test_theta_is_left_as_it_was(self, simulator: Simulator, theta: np.ndarray) -> None:
        given = theta.copy()
        _simulate(simulator, given, 2)
        np.testing.assert_array_equal(given, theta, "`simulate` must not change theta")

    def test_equal_generators_give_equal_rows(self, simulator: Simulator, theta: np.ndarray) -> None:
        first = _simulate(simulator, theta, 2)
        _simulate(simulator, theta[::-1].copy(), 3)  # what was simulated in between must leave no trace
        _require_same(first, _simulate(simulator, theta, 2), "equal generators must give equal rows")

    def test_other_generators_give_other_rows(self, simulator: Simulator, theta: np.ndarray) -> None:
        same = _same(_simulate(simulator, theta, 2), _simulate(simulator, theta, 3))
        if self.deterministic:
            assert same.all(), "`deterministic` simulators must ignore the generator"
        else:
            assert not same.all(), "another generator gave the same rows: use `rng`, or say `deterministic = True`"

    def test_global_randomness_is_neither_used_nor_changed(self, simulator: Simulator, theta: np.ndarray) -> None:
        results = []
        for seed in (1, 2):
            with _global_seed(seed):
                before = _global_state()
                results.append(_simulate(simulator, theta, 2))
                assert _global_state() == before, "`simulate` must draw from `rng` alone, not from a global generator"
        _require_same(results[0], results[1], "`simulate` must not depend on a global generator")

    def test_a_row_depends_on_its_own_theta_alone(self, simulator: Simulator, theta: np.ndarray) -> None:
        """Exactly, with the same noise, for simulators whose use of the generator theta does not move; else in law."""
        base, state = _with_state(simulator, theta, 2)
        for trial in range(5):
            kept = np.arange(self.rows) % 5 == trial
            others = simulator.prior.sample(self.rows, np.random.default_rng(10 + trial))
            x, after = _with_state(simulator, np.where(kept[:, None], theta, others), 2)
            if after != state:
                _require_same_law(simulator, theta, self.rows_alone)
                return
            _require_same(_rows(base, kept), _rows(x, kept), "a row changed with the theta of others", self.rtol)

    def test_a_bad_row_spoils_no_other(self, simulator: Simulator, theta: np.ndarray) -> None:
        """NaN in one row may raise, for then the campaign goes row by row; it must not spread."""
        spoilt = theta.copy()
        spoilt[self.rows // 2] = np.nan
        try:
            with np.errstate(all="ignore"):
                x = _simulate(simulator, spoilt, 2)
        except Exception as error:
            pytest.skip(f"`simulate` raises for NaN: {type(error).__name__}")
        others = np.arange(self.rows) != self.rows // 2
        before = _finite(_simulate(simulator, theta, 2))[others]
        assert (_finite(x)[others] >= before).all(), "NaN in the theta of one row made other rows useless"

    def test_shipped_observations_fit(self, simulator: Simulator) -> None:
        for name, shipped in getattr(simulator, "observations", {}).items():
            known = [v for v in _nuisance(simulator) if v.name in shipped]
            found = read_observation(shipped, Variables([*simulator.observables, *known]))
            assert set(found) >= set(simulator.observables.names), f"observation `{name}` has other observables"

    def test_is_described_in_json(self, simulator: Simulator) -> None:
        assert json.loads(json.dumps(describe(simulator))) == describe(simulator)

    def test_log_likelihood(self, simulator: Simulator, theta: np.ndarray) -> None:
        likelihood: Any = _optional(simulator, "log_likelihood")
        x, more = _simulate(simulator, theta, 2), _more(simulator, self.rows)
        each = likelihood(theta, x, *more)
        assert each.shape == (self.rows,), f"`log_likelihood` must have shape ({self.rows},); got {each.shape}"
        assert each.dtype == np.float64, f"`log_likelihood` must be float64; got {each.dtype}"
        assert not np.isnan(each).any(), "`log_likelihood` must not be NaN"
        assert (each > -np.inf).any(), "`log_likelihood` must not exclude all of the simulator's own rows"
        one = {name: values[:1] for name, values in x.items()}
        repeated = {name: np.repeat(values, self.rows, axis=0) for name, values in one.items()}
        np.testing.assert_allclose(
            likelihood(theta, one, *more), likelihood(theta, repeated, *more), err_msg="one row of x is meant for all"
        )

    def test_base_random_numbers_give_the_same_rows(self, simulator: Simulator, theta: np.ndarray) -> None:
        sample_u, simulate_from_u = (_optional(simulator, name) for name in ("sample_u", "simulate_from_u"))
        u = sample_u(self.rows, np.random.default_rng(2))
        wanted = (self.rows, *simulator.u_shape)  # type: ignore[attr-defined]
        assert u.shape == wanted, f"`sample_u` must have shape {wanted}; got {u.shape}"
        from_u = simulate_from_u(theta, u, *_more(simulator, self.rows))
        _require_same(_simulate(simulator, theta, 2), from_u, "`simulate` must be `simulate_from_u` of `sample_u`")


def _simulate(simulator: Simulator, theta: np.ndarray, seed: int) -> Arrays:
    return _with_state(simulator, theta, seed)[0]


def _with_state(simulator: Simulator, theta: np.ndarray, seed: int) -> tuple[Arrays, object]:
    """x, and the state that the generator was left in."""
    rng = np.random.default_rng(seed)
    x = simulate_checked(simulator, theta, rng, _context(simulator, len(theta)))
    return x, rng.bit_generator.state


def _context(simulator: Simulator, rows: int) -> Arrays | None:
    """One context, the same at every call; None where the simulator has none."""
    prior = context_of(simulator)
    return None if prior is None else prior.draw(rows, np.random.default_rng(4))


def _nuisance(simulator: Simulator) -> Variables:
    prior = context_of(simulator)
    return Variables([]) if prior is None else prior.variables


def _more(simulator: Simulator, rows: int) -> tuple[Arrays, ...]:
    """The context as a further argument, if there is one: a simulator without need not know of it."""
    context = _context(simulator, rows)
    return () if context is None else (context,)


def _fits(values: np.ndarray, dtype: str) -> bool:
    """Whether another kind of numbers loses nothing as ``dtype``, such as whole floats as integers."""
    with np.errstate(invalid="ignore"):
        return np.array_equal(values.astype(dtype), values)


def _optional(simulator: Simulator, name: str) -> Any:
    if not hasattr(simulator, name):
        pytest.skip(f"it has no `{name}`")
    return getattr(simulator, name)


def _rows(x: Arrays, kept: np.ndarray) -> Arrays:
    return {name: values[kept] for name, values in x.items()}


def _finite(x: Arrays) -> np.ndarray:
    """Which rows are finite in every observable."""
    return np.all([np.isfinite(values).reshape(len(values), -1).all(1) for values in x.values()], axis=0)


def _same(first: Arrays, second: Arrays, rtol: float = 0.0) -> np.ndarray:
    """Which rows are the same; NaN is like NaN."""
    same = [
        np.isclose(values, second[name], rtol=rtol, atol=0.0, equal_nan=True).reshape(len(values), -1).all(1)
        for name, values in first.items()
    ]
    return np.all(same, axis=0)


def _require_same(first: Arrays, second: Arrays, message: str, rtol: float = 0.0) -> None:
    same = _same(first, second, rtol)
    assert same.all(), f"{message}: {int((~same).sum())} of {len(same)} rows differ, the first is {int(same.argmin())}"


def _require_same_law(simulator: Simulator, theta: np.ndarray, alone: int) -> None:
    """Compare x at one theta, simulated among its like, with x at that theta among draws of the prior."""
    one = np.repeat(theta[:1], 2 * alone, axis=0)
    mixed = one.copy()
    mixed[::2] = simulator.prior.sample(alone, np.random.default_rng(5))
    first, second = _simulate(simulator, one, 6), _simulate(simulator, mixed, 7)
    columns = [
        (name, a, b)
        for name in first
        for a, b in zip(first[name].reshape(2 * alone, -1).T, second[name][1::2].reshape(alone, -1).T, strict=True)
    ]
    for name, a, b in columns:
        p = ks_2samp(a, b, nan_policy="omit").pvalue
        assert not p < _TINY_P / len(columns), f"the law of `{name}` changed with the theta of other rows: p = {p:.1g}"


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """All global generators at a seed, and as they were afterwards."""
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])


def _global_state() -> tuple[object, ...]:
    """Without that of `random`, which tools that check types in tests draw from."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    return numpy[1].tobytes(), numpy[2], torch.random.get_rng_state().numpy().tobytes()

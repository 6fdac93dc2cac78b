"""What is kept of a long computation is taken as it is, and what is not is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from simfer.data.parts import Replayed, kept
from simfer.data.stopping import ask_to_stop, go_on


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    go_on()


def test_a_part_is_made_once(tmp_path: Path) -> None:
    made = [kept(tmp_path / "new/part.npz", lambda n=n: {"n": np.array(n)})["n"] for n in range(3)]
    assert made == [0, 0, 0]
    assert kept(None, lambda: {"n": np.array(5)})["n"] == 5


def test_a_part_is_kept_before_it_stops(tmp_path: Path) -> None:
    ask_to_stop()
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "part.npz", lambda: {"n": np.array(1)})
    assert kept(tmp_path / "part.npz", lambda: {"n": np.array(2)})["n"] == 1  # nothing is left to be saved


class Square:
    def __init__(self, stop_at: int = 0) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, argument: np.ndarray, offset: float) -> np.ndarray:
        self.calls += 1
        if self.calls == self.stop_at:
            ask_to_stop()
        return argument**2 + offset


def test_the_same_calls_have_the_same_values_without_being_made(tmp_path: Path) -> None:
    arguments, square = [np.full(3, float(k)) for k in range(5)], Square(stop_at=3)
    first = Replayed(tmp_path / "calls.npz", square)
    with pytest.raises(KeyboardInterrupt):
        [first(argument, 0.5) for argument in arguments]
    go_on()
    again = Replayed(tmp_path / "calls.npz", square)
    for argument in arguments:
        np.testing.assert_array_equal(again(argument, 0.5), argument**2 + 0.5)
    assert square.calls == 5


def test_another_call_is_made_anew(tmp_path: Path) -> None:
    square = Square(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        Replayed(tmp_path / "calls.npz", square)(np.zeros(2), 0.0)
    go_on()
    np.testing.assert_array_equal(Replayed(tmp_path / "calls.npz", square)(np.ones(2), 0.0), np.ones(2))
    assert square.calls == 2

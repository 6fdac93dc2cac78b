"""A few simulations before a campaign begins: is the contract kept, is the generator used, are rows independent?

Row independence is first asked sharply: with the same generator, does the first row stay as it is when all others
change? Simulators whose use of the generator depends on theta cannot answer that, and are asked in distribution: the first
row among others at one end of the prior, against the same row among others at the other end, by a two-sample
Kolmogorov–Smirnov test of every number of x.
"""

from __future__ import annotations

import logging
import time

import numpy as np
import scipy
import torch

from ..data.layout import Block
from ..data.variables import Arrays
from .base import ContextPrior, Simulator
from .block import BlockSimulator, Draw, Protection
from .prior import Prior

logger = logging.getLogger(__name__)

_ROWS = 3
_LONGEST_CALL = 0.02  # seconds; slower simulators are not asked in distribution
_REPEATS = 64
_SURE = 1e-7


def probe(simulator: Simulator, prior: Prior, protection: Protection, context: ContextPrior | None) -> None:
    """Hold the simulator to its contract before anything is written.

    Warns of one that gives other data for the same generator, and of one whose rows depend on each other.

    Raises:
        ContractError: Wrong names, number of rows, shapes or dtypes.
    """
    simulate = BlockSimulator(simulator, prior, 0, protection, context)
    one_by_one = getattr(simulator, "per_row", False)
    draw, _ = simulate.draw(Block((0,), slice(0, 1 if one_by_one else _ROWS)))
    first = _simulated(simulate, draw, 0)
    started = time.perf_counter()  # the second call: a first one may have to warm up
    second = _simulated(simulate, draw, 0)
    seconds = time.perf_counter() - started
    if first is None or second is None:  # in the campaign, rows will be tried one by one
        return
    name = type(simulator).__name__
    if not _same(first, second, slice(None)):
        logger.warning(
            "`%s.simulate` gives other data for the same `rng`: take all randomness from it, or this campaign cannot be "
            "repeated or resumed to the same bytes",
            name,
        )
    elif not one_by_one and not _independent(simulate, draw, seconds):
        logger.warning(
            "`%s.simulate` lets rows of one batch depend on each other: x of a row changes with the theta of others; "
            "simulate every row on its own, or nothing learned from this campaign can be trusted",
            name,
        )


def _independent(simulate: BlockSimulator, draw: Draw, seconds: float) -> bool:
    """Whether the first row is free of the others; True where that cannot be asked."""
    dim = simulate.prior.dim
    low, high = (_among(simulate, draw, z) for z in (np.full(dim, -2.0), np.linspace(0.5, 2.0, dim)))  # not mirrored
    left, right = _simulated(simulate, low, 0), _simulated(simulate, high, 0)
    if left is None or right is None or _same(left, right, slice(0, 1)) or seconds > _LONGEST_CALL:
        return True
    return _p_value(_repeated(simulate, low, 1), _repeated(simulate, high, 2)) > _SURE


def _among(simulate: BlockSimulator, draw: Draw, z: np.ndarray) -> Draw:
    """The same first row among others at one point of the prior."""
    others = simulate.prior.from_unconstrained(torch.from_numpy(np.tile(z, (_ROWS - 1, 1))))
    return Draw(np.concatenate([draw.theta[:1], others.numpy()]), draw.context, draw.u, draw.group)


def _repeated(simulate: BlockSimulator, draw: Draw, seed: int) -> np.ndarray:
    """x of the first row, many times: ``(repeat, number)``."""
    found = [_simulated(simulate, draw, (seed, repeat)) for repeat in range(_REPEATS)]
    rows = [np.concatenate([np.ravel(v[0]) for v in x.values()]) for x in found if x is not None]
    return np.array(rows, dtype=float)


def _p_value(left: np.ndarray, right: np.ndarray) -> float:
    """Of the smallest p-value over all numbers, corrected for their number."""
    if min(len(left), len(right)) < _REPEATS // 2:
        return 1.0
    kept = np.isfinite(left).all(0) & np.isfinite(right).all(0)
    if not kept.any():
        return 1.0
    p_values = scipy.stats.ks_2samp(left[:, kept], right[:, kept], axis=0).pvalue
    return float(np.min(p_values) * kept.sum())


def _simulated(simulate: BlockSimulator, draw: Draw, seed: int | tuple[int, ...]) -> Arrays | None:
    block = Block((0,), slice(0, len(draw.theta)))
    return simulate.together(block, draw, np.random.default_rng(seed)).result


def _same(left: Arrays, right: Arrays, rows: slice) -> bool:
    return all(np.allclose(left[n][rows], right[n][rows], rtol=1e-4, atol=1e-6, equal_nan=True) for n in left)

r"""Classifier two-sample test in the protocol of the SBI benchmark: scikit-learn's, without what scikit-learn does besides.

.. math:: \mathrm{C2ST} = \frac{1}{K} \sum_{k} \mathrm{accuracy}_k(f_{-k}),

0.5 where draws of two distributions are alike, 1 where they do not overlap. Lopez-Paz & Oquab (2017),
https://arxiv.org/abs/1610.06545; in the settings of Lueckmann et al. (2021), https://arxiv.org/abs/2101.04653: both sets
z-scored by the first, two hidden layers of 10 d ReLU units, Adam at 1e-3 on batches of 200, weight penalty 1e-4, until eleven
epochs in a row do not lower the loss by 1e-4, five folds. Weights, folds and orders of rows are drawn as scikit-learn's
``MLPClassifier`` draws them; numbers are float32 in arrays that are used again and again.

python tests/benchmarks/c2st_fast.py [--problems 4]   compares the two, value by value and second by second
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

_BATCH, _PENALTY, _RATE, _TOLERANCE, _PATIENCE, _MOST_EPOCHS = 200, 1e-4, 1e-3, 1e-4, 10, 10_000
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def c2st(first: Float[np.ndarray, "draw parameter"], second: Float[np.ndarray, "draw parameter"]) -> float:
    """Accuracy on held-out draws of a classifier between two sets of the same size."""
    x, label = together(first, second)
    x, label = x.astype(np.float32), label.astype(np.float32)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(np.mean([_accuracy(_trained(x[a], label[a]), x[b], label[b]) for a, b in folds.split(x)]))


def scikit_learns(first: Float[np.ndarray, "draw parameter"], second: Float[np.ndarray, "draw parameter"]) -> float:
    """The same by scikit-learn."""
    x, label = together(first, second)
    width = 10 * x.shape[1]
    network = MLPClassifier(hidden_layer_sizes=(width, width), max_iter=_MOST_EPOCHS, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(cross_val_score(network, x, label, cv=folds, scoring="accuracy").mean())


def together(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, Int[np.ndarray, " row"]]:
    """Both sets, z-scored by the first, and which is which."""
    both = (np.concatenate([first, second]) - first.mean(0)) / first.std(0)
    return both, np.repeat([0, 1], [len(first), len(second)])


class _Network:
    """Weights of two hidden layers as views of one vector, and so their gradients."""

    def __init__(self, d: int, rng: np.random.RandomState) -> None:
        widths = (d, 10 * d, 10 * d, 1)
        shapes = [shape for a, b in pairwise(widths) for shape in ((a, b), (b,))]
        sizes = [int(np.prod(shape)) for shape in shapes]
        self.values, self.gradient = (np.zeros(sum(sizes), np.float32) for _ in range(2))
        self.penalised = np.repeat(np.float32([1, 0] * 3), sizes)
        ends = np.cumsum(sizes)[:-1]
        self.w, self.dw = (
            [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]
            for flat in (self.values, self.gradient)
        )
        for k, (a, b) in enumerate(pairwise(widths)):  # Glorot & Bengio (2010), biases too
            bound = np.sqrt(6 / (a + b))
            for part in self.w[2 * k : 2 * k + 2]:
                part[:] = rng.uniform(-bound, bound, part.shape)

    def logits(self, x: np.ndarray) -> Float[np.ndarray, " row"]:
        w1, b1, w2, b2, w3, b3 = self.w
        return (np.maximum(np.maximum(x @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3)[:, 0]


class _Workspace:
    """Arrays for batches of one size."""

    def __init__(self, rows: int, d: int) -> None:
        self.x = np.empty((rows, d), np.float32)
        self.h1, self.h2, self.d1, self.d2 = (np.empty((rows, 10 * d), np.float32) for _ in range(4))

    def step(self, network: _Network, label: Float[np.ndarray, " row"]) -> float:
        """Mean loss of the rows in ``x``; its gradient."""
        w1, b1, w2, b2, w3, b3 = network.w
        dw1, db1, dw2, db2, dw3, db3 = network.dw
        _relu(self.x, w1, b1, self.h1)
        _relu(self.h1, w2, b2, self.h2)
        logit = (self.h2 @ w3 + b3)[:, 0]
        loss = float((np.logaddexp(0, logit) - label * logit).mean())
        error = ((1 / (1 + np.exp(-logit)) - label) / np.float32(len(label)))[:, None]
        np.matmul(self.h2.T, error, out=dw3)
        db3[:] = error.sum()
        np.matmul(error, w3.T, out=self.d2)
        self.d2 *= self.h2 > 0
        np.matmul(self.h1.T, self.d2, out=dw2)
        self.d2.sum(0, out=db2)
        np.matmul(self.d2, w2.T, out=self.d1)
        self.d1 *= self.h1 > 0
        np.matmul(self.x.T, self.d1, out=dw1)
        self.d1.sum(0, out=db1)
        return loss


def _relu(x: np.ndarray, w: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    np.matmul(x, w, out=out)
    out += b
    np.maximum(out, 0, out=out)


class _Adam:
    def __init__(self, size: int) -> None:
        self.m, self.v, self.update = (np.zeros(size, np.float32) for _ in range(3))
        self.steps = 0

    def step(self, values: np.ndarray, gradient: np.ndarray) -> None:
        self.steps += 1
        b1, b2 = _BETAS
        rate = _RATE * np.sqrt(1 - b2**self.steps) / (1 - b1**self.steps)
        self.m += np.float32(1 - b1) * (gradient - self.m)
        self.v += np.float32(1 - b2) * (gradient * gradient - self.v)
        np.sqrt(self.v, out=self.update)
        self.update += np.float32(_EPSILON)
        np.divide(self.m, self.update, out=self.update)
        self.update *= np.float32(rate)
        values -= self.update


def _trained(x: Float[np.ndarray, "row parameter"], label: Float[np.ndarray, " row"]) -> _Network:
    rng = np.random.RandomState(1)
    network = _Network(x.shape[1], rng)
    adam = _Adam(len(network.values))
    order, best, idle = np.arange(len(x)), np.inf, 0
    sizes = {min(_BATCH, len(x)), len(x) % _BATCH or _BATCH}
    workspaces = {rows: _Workspace(rows, x.shape[1]) for rows in sizes}
    for _ in range(_MOST_EPOCHS):
        shuffled = np.arange(len(x))
        rng.shuffle(shuffled)
        order = order[shuffled]
        loss = 0.0
        for start in range(0, len(x), _BATCH):
            rows = order[start : start + _BATCH]
            here = workspaces[len(rows)]
            np.take(x, rows, axis=0, out=here.x)
            shrunk = network.penalised * network.values
            penalty = np.float32(_PENALTY / len(rows))
            loss += (here.step(network, label[rows]) + 0.5 * float(penalty) * float(shrunk @ shrunk)) * len(rows)
            network.gradient += penalty * shrunk
            adam.step(network.values, network.gradient)
        loss /= len(x)
        idle = idle + 1 if loss > best - _TOLERANCE else 0
        best = min(best, float(loss))
        if idle > _PATIENCE:
            break
    return network


def _accuracy(network: _Network, x: np.ndarray, label: np.ndarray) -> float:
    return float(((network.logits(x) > 0) == (label > 0)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=3, help="for each number of parameters")
    parser.add_argument("--dimensions", nargs="+", type=int, default=[2, 5, 10])
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'d':>3} {'here':>8} {'sklearn':>8} {'seconds':>8} {'sklearn':>8}")
    for d in arguments.dimensions:
        for k in range(arguments.problems):
            first, second = rng.standard_normal((2, 10_000, d))
            second *= 1 + 0.3 * k * rng.random(d)
            times = [time.perf_counter()]
            found = []
            for run in (c2st, scikit_learns):
                found.append(run(first, second))
                times.append(time.perf_counter())
            print(
                f"{d:3} {found[0]:8.4f} {found[1]:8.4f} {times[1] - times[0]:8.1f} {times[2] - times[1]:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

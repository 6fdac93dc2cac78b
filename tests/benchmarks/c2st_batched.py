r"""Classifier two-sample test: how well a network tells draws of two distributions apart.

.. math:: \mathrm{C2ST} = \frac{1}{K} \sum_{k} \mathrm{accuracy}_k(f_{-k}),

0.5 where they are the same, 1 where they do not overlap. Lopez-Paz & Oquab (2017), https://arxiv.org/abs/1610.06545; in the
settings of the SBI benchmark, Lueckmann et al. (2021), https://arxiv.org/abs/2101.04653: both sets z-scored by the first,
two hidden layers of 10 d ReLU units, Adam at 1e-3 on batches of 200, weight penalty 1e-4, until ten epochs in a row lower
the loss by less than 1e-4, five folds. These are the rules of scikit-learn's ``MLPClassifier``; here all folds of all
problems are trained in one pass, which pays on a GPU.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

_BATCH, _PENALTY, _RATE, _TOLERANCE, _PATIENCE, _MOST_EPOCHS = 200, 1e-4, 1e-3, 1e-4, 10, 10_000


class _Layer(NamedTuple):
    weight: Float[Tensor, "member width_in width_out"]
    bias: Float[Tensor, "member 1 width_out"]


def c2st(
    first: Float[np.ndarray, "*problem draw parameter"],
    second: Float[np.ndarray, "*problem draw parameter"],
    *,
    folds: int = 5,
    seed: int = 1,
    device: str = "cpu",
) -> Float[np.ndarray, "*problem"]:
    """Accuracy on held-out draws of a classifier between two sets of the same size.

    Args:
        first: Reference draws; also of several problems at once, which are then trained together.
        second: Draws to be compared with them.
        folds: Of the cross-validation.
        seed: Of folds, weights and the order of batches.
        device: Where to train.
    """
    p, q = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    assert p.shape == q.shape, (p.shape, q.shape)
    mean, sd = p.mean(-2, keepdims=True), p.std(-2, keepdims=True)
    both = np.concatenate([(p - mean) / sd, (q - mean) / sd], axis=-2).reshape(-1, 2 * p.shape[-2], p.shape[-1])
    label = torch.arange(both.shape[1], device=device).ge(p.shape[-2]).float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        accuracy = _cross_validated(torch.from_numpy(both).float().to(device), label, folds, seed)
    return accuracy.reshape(p.shape[:-2])


def _cross_validated(x: Float[Tensor, "problem draw parameter"], label: Tensor, folds: int, seed: int) -> np.ndarray:
    """A member of the stack is one fold of one problem."""
    order = np.arange(len(label))
    np.random.RandomState(seed).shuffle(order)  # the folds of scikit-learn's KFold
    held = np.array_split(order, folds)
    learn = [torch.from_numpy(np.setdiff1d(order, part)) for part in held]
    rows = min(len(part) for part in learn)
    members = [(i, torch.from_numpy(part)) for i in range(len(x)) for part in held]
    inputs = torch.stack([x[i][part[:rows]] for i in range(len(x)) for part in learn])
    labels = torch.stack([label[part[:rows]] for part in learn]).repeat(len(x), 1)
    layers = _trained(inputs, labels)
    right = [_accuracy(layers, k, x[i][part], label[part]) for k, (i, part) in enumerate(members)]
    return np.array(right).reshape(len(x), folds).mean(1)


def _trained(x: Float[Tensor, "member row parameter"], label: Float[Tensor, "member row"]) -> list[_Layer]:
    """Weights of each member at the epoch at which it stopped."""
    members, rows, d = x.shape
    layers = _initial(members, (d, 10 * d, 10 * d, 1), x.device)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    groups = [{"params": weights, "weight_decay": _PENALTY / min(_BATCH, rows)}, {"params": biases}]
    optimizer = torch.optim.Adam(groups, lr=_RATE, fused=True)
    kept = [_Layer(*(tensor.detach().clone() for tensor in layer)) for layer in layers]
    best, idle = torch.full((members,), math.inf, device=x.device), torch.zeros(members, device=x.device)
    running = torch.ones(members, dtype=torch.bool, device=x.device)
    for _ in range(_MOST_EPOCHS):
        loss = _epoch(layers, optimizer, x, label)
        idle = torch.where(loss > best - _TOLERANCE, idle + 1, 0.0)
        best = torch.minimum(best, loss)
        for layer, copy in zip(layers, kept, strict=True):
            for tensor, place in zip(layer, copy, strict=True):
                place[running] = tensor.detach()[running]
        running &= idle <= _PATIENCE
        if not running.any():
            break
    return kept


def _epoch(
    layers: list[_Layer], optimizer: torch.optim.Optimizer, x: Tensor, label: Tensor
) -> Float[Tensor, " member"]:
    """One pass over the rows, each member in an order of its own; the mean loss."""
    members, rows, _ = x.shape
    order = torch.rand(members, rows, device=x.device).argsort(1)
    total = torch.zeros(members, device=x.device)
    for batch in order.split(_BATCH, dim=1):
        here = torch.arange(members, device=x.device)[:, None]
        loss = _losses(layers, x[here, batch], label[here, batch])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        total += loss.detach() * batch.shape[1]
    return total / rows + _penalty(layers, min(_BATCH, rows))


def _losses(layers: list[_Layer], x: Tensor, label: Tensor) -> Float[Tensor, " member"]:
    return cross_entropy(_logits(layers, x), label, reduction="none").mean(1)


def _penalty(layers: list[_Layer], batch: int) -> Float[Tensor, " member"]:
    squares = sum((layer.weight.detach() ** 2).sum((1, 2)) for layer in layers)
    return torch.as_tensor(0.5 * _PENALTY * squares / batch)


def _logits(layers: list[_Layer], x: Float[Tensor, "member row parameter"]) -> Float[Tensor, "member row"]:
    for layer in layers[:-1]:
        x = torch.baddbmm(layer.bias, x, layer.weight).relu()
    return torch.baddbmm(layers[-1].bias, x, layers[-1].weight)[..., 0]


def _accuracy(layers: list[_Layer], member: int, x: Tensor, label: Tensor) -> float:
    only = [_Layer(*(tensor[member, None] for tensor in layer)) for layer in layers]
    return float(((_logits(only, x[None])[0] > 0) == label.bool()).double().mean())


def _initial(members: int, widths: tuple[int, ...], device: torch.device) -> list[_Layer]:
    """Glorot & Bengio (2010), biases too, as scikit-learn does."""
    layers = []
    for before, after in pairwise(widths):
        bound = math.sqrt(6 / (before + after))
        layers.append(_Layer(*(_uniform((members, rows, after), bound, device) for rows in (before, 1))))
    return layers


def _uniform(shape: tuple[int, ...], bound: float, device: torch.device) -> Tensor:
    return torch.empty(shape, device=device).uniform_(-bound, bound).requires_grad_()

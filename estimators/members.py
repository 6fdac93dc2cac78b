r"""Members of one method that differ in their initial weights, trained in one pass: what every ensemble is.

All see the same batches. Every weight has a leading axis of members, over which ``torch.func.vmap`` runs the member's own
code, so that a step of all is one pass over larger tensors; what they share (normalisation of x, theta in unconstrained
space) is computed once. A member's gradient, its bound and its best weights are its own: each becomes what it would have
become alone, but for random numbers in the loss (flow matching, likelihoods of counts), which all share. Their weights in the mixture,

.. math:: w = \arg\max_{w \in \Delta} \sum_i \log \sum_k w_k\, q_k(i),

are those that predict rows i best that no member learned from: stacking of predictive distributions, Yao et al. (2018),
https://arxiv.org/abs/1704.02030.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..data.batch import Batch
from ..data.errors import ShapeError
from .base import Estimator
from .settings import EstimatorSettings

logger = logging.getLogger("simfer.estimators.ensemble")

_TOLERANCE = 1e-6  # nats per row that stacking may be away from its optimum
_ITERATIONS = 10_000
ROWS_AT_ONCE = 2**14  # times members, of held-out rows
_PREFIX = "member."


class Members(Estimator):
    """Members of one method, with what each has of its own stacked.

    Its weights are those of one member, with a leading axis of members.

    Args:
        members: Two or more, which differ in nothing but their weights; not to be used afterwards.

    Raises:
        ShapeError: Fewer than two, or members of different settings.
    """

    def __init__(self, members: Sequence[Estimator]) -> None:
        nn.Module.__init__(self)
        self.settings = _settings(members)
        self.members = len(members)
        first = members[0]
        self.observables = first.observables
        self.log_weights: Tensor
        self.register_buffer("log_weights", torch.full((self.members,), -math.log(self.members)))
        _stack(members)
        self.member = first
        self._in_turn: set[str] = set()  # questions that turned out not to be for all at once

    @property
    def transforms(self) -> dict[str, str]:
        return self.member.transforms

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        self.member.fit_preprocess(portions)

    def prepare(self, rows: Batch) -> Batch:
        return self.member.prepare(rows)

    def member_losses(self, batch: Batch) -> Float[Tensor, "member rows"]:
        return self.each(lambda member: member.loss(batch))

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        return self.member_losses(batch).mean(0)

    def take_better(self, best: dict[str, Tensor], now: dict[str, Tensor], better: Sequence[bool]) -> dict[str, Tensor]:
        if not best:
            return now
        stacked, chosen = set(self._stacked()), torch.tensor(better)
        return {
            name: torch.where(chosen.view(-1, *[1] * (values.dim() - 1)), values, best[name])
            if name in stacked
            else values
            for name, values in now.items()
        }

    @torch.no_grad()
    def finish(self, held_out: Iterable[Batch]) -> dict[str, Any]:
        """Fit the weights of the mixture to rows that no member learned from.

        Returns:
            ``ensemble``: the weights, and the loss of every member and of the mixture in nats per row.
        """
        self.eval()
        found = torch.cat([self.log_densities(part) for batch in held_out for part in _parts(batch, self.members)], 1)
        weights = stacking_weights(found)
        self.log_weights.copy_(weights.log())
        mixture = torch.logsumexp(found + weights.log()[:, None], 0).mean()
        losses = {"members": (-found.mean(1)).tolist(), "mixture": -float(mixture)}
        return {"ensemble": {"weights": weights.tolist(), "loss": losses}}

    @abstractmethod
    def log_densities(self, batch: Batch) -> Float[Tensor, "member rows"]:
        """What each member makes of rows, in densities that are normalised over the same space."""

    def forward(self, ask: Callable[..., Any], *values: Tensor) -> Any:
        """Ask the member whose weights stand in for the stacked ones: what `functional_call` calls."""
        return ask(self.member, *values)

    def ask(self, k: int, ask: Callable[..., Any], *values: Tensor) -> Any:
        """What ``ask(member, *values)`` gives for member k."""
        weights = {name: stacked[k] for name, stacked in self._stacked().items()}
        return functional_call(self, weights, (ask, *values), tie_weights=False)

    def each(self, ask: Callable[..., Tensor], *values: Tensor, at_once: bool = True) -> Float[Tensor, "member *rest"]:
        """What ``ask(member, *values)`` gives for every member.

        Args:
            ask: Its result must be a tensor.
            values: With a leading axis of members.
            at_once: Whether in one pass; a network that cannot be batched goes one after another, and the log says so.
        """
        if not at_once or ask.__qualname__ in self._in_turn:
            return self._one_by_one(ask, *values)
        try:
            return self._at_once(ask, *values)
        except RuntimeError as error:
            answers = self._one_by_one(ask, *values)  # raises what is wrong with the member itself
            self._in_turn.add(ask.__qualname__)
            logger.warning("the ensemble's members go one after another: %s", str(error).splitlines()[0])
            return answers

    def _at_once(self, ask: Callable[..., Tensor], *values: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], *values: Tensor) -> Tensor:
            return functional_call(self, weights, (ask, *values), tie_weights=False)

        return vmap(one, randomness="different")(self._stacked(), *values)

    def _one_by_one(self, ask: Callable[..., Tensor], *values: Tensor) -> Tensor:
        return torch.stack([self.ask(k, ask, *(value[k] for value in values)) for k in range(self.members)])

    def _stacked(self) -> dict[str, Tensor]:
        """Name in the state dict → weights of all members."""
        return dict(_own(self.member, _PREFIX))


def member_seeds(seed: int, members: int) -> list[int]:
    """Of the initial weights: the first member is what ``seed`` alone would give."""
    others = [np.random.SeedSequence(seed, spawn_key=(0, k)).generate_state(1, np.uint64)[0] for k in range(1, members)]
    return [seed, *(int(word >> np.uint64(1)) for word in others)]


def stacking_weights(log_probs: Float[Tensor, "member rows"]) -> Float[Tensor, "member"]:
    r"""The weights that maximise the mean of :math:`\log \sum_k w_k p_k`, by expectation maximisation, in float64.

    The problem is concave; the largest ratio of :math:`\overline{p_k / \sum_j w_j p_j}` to 1 bounds how far the optimum is.
    """
    scaled = (log_probs.double() - log_probs.double().amax(0)).exp()
    weights = scaled.new_full((len(scaled),), 1 / len(scaled))
    for _ in range(_ITERATIONS):
        gains = (scaled / (weights @ scaled)).mean(1)
        if gains.max() <= 1 + _TOLERANCE:
            break
        weights = weights * gains
    return weights / weights.sum()


def _parts(batch: Batch, members: int) -> Iterator[Batch]:
    """Rows in portions whose passes through all members fit in memory."""
    step = max(1, ROWS_AT_ONCE // members)
    return (batch.select(slice(start, start + step)) for start in range(0, batch.rows, step))


def _settings(members: Sequence[Estimator]) -> EstimatorSettings:
    if len(members) < 2:
        raise ShapeError(f"`members` of an ensemble must be two or more; got {len(members)}")
    first = members[0]
    if any(type(member) is not type(first) or member.settings != first.settings for member in members):
        raise ShapeError("`members` of an ensemble must have the same settings; got different ones")
    return first.settings.model_copy(update={"ensemble": len(members)})


def _stack(members: Sequence[Estimator]) -> None:
    """Give the first member the weights of all, along a new leading axis."""
    every = [dict(_own(member)) for member in members]
    for name, value in every[0].items():
        stacked = torch.stack([weights[name].detach() for weights in every])
        owner, _, leaf = name.rpartition(".")
        trained = isinstance(value, nn.Parameter)
        setattr(
            members[0].get_submodule(owner), leaf, nn.Parameter(stacked, value.requires_grad) if trained else stacked
        )


def _own(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """What each member has of its own: parameters, and the running statistics of batch normalisation."""
    yield from module.named_parameters(prefix.removesuffix("."))
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_mean is not None:
            yield from ((f"{prefix}{name}.{leaf}", getattr(layer, leaf)) for leaf in ("running_mean", "running_var"))

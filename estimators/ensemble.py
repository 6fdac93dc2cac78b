r"""Ensembles: members of one method that differ in their initial weights, trained in one pass and mixed.

.. math:: q(\theta | x) = \sum_k w_k\, q_k(\theta | x), \qquad
    w = \arg\max_{w \in \Delta} \sum_i \log \sum_k w_k\, q_k(\theta_i | x_i)

with the sum over rows that no member learned from: stacking of predictive distributions, Yao et al. (2018),
https://arxiv.org/abs/1704.02030. Ensembles of posterior estimators are more conservative than their members: Hermans et al.
(2022), https://arxiv.org/abs/2110.06581.

All members see the same batches. Every weight has a leading axis of members, over which ``torch.func.vmap`` runs the member's
own code, so that a step of all is one pass over larger tensors; what they share (normalisation of x, theta in unconstrained
space) is computed once. A member's gradient, its bound and its best weights are its own: each becomes what it would have
become alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..data.batch import Batch
from ..data.errors import ShapeError, UnsupportedError
from ..simulators.prior import Prior
from .base import Estimator
from .direct import DirectEstimator, DirectPosterior, log_prob
from .settings import EstimatorSettings

logger = logging.getLogger("simfer.estimators.ensemble")

_TOLERANCE = 1e-6  # nats per row that stacking may be away from its optimum
_ITERATIONS = 10_000
_ROWS_AT_ONCE = 2**14  # times members, of held-out rows
_PREFIX = "member."


class Ensemble(Estimator):
    """Members of one method, mixed by how well they predict held-out rows.

    Its weights are those of one member, with a leading axis of members.

    Args:
        members: Two or more, which differ in nothing but their weights; not to be used afterwards.

    Raises:
        ShapeError: Fewer than two, or members of different settings.
        UnsupportedError: Of a method that has no density of theta.
    """

    def __init__(self, members: Sequence[Estimator]) -> None:
        nn.Module.__init__(self)
        self.settings = _settings(members)
        self.members = len(members)
        first = members[0]
        self.prior, self.observables = _direct(first).prior, first.observables
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
        found = torch.cat([self._log_probs(part) for batch in held_out for part in _parts(batch, self.members)], 1)
        weights = stacking_weights(found)
        self.log_weights.copy_(weights.log())
        mixture = torch.logsumexp(found + weights.log()[:, None], 0).mean()
        losses = {"members": (-found.mean(1)).tolist(), "mixture": -float(mixture)}
        return {"ensemble": {"weights": weights.tolist(), "loss": losses}}

    def condition(self, x: dict[str, Tensor]) -> Float[Tensor, "rows context"]:
        """What the members' densities are conditioned on, one member's after the other's."""
        return self.each(lambda member: member.condition(x)).movedim(0, 1).flatten(1)

    def density(self, context: Float[Tensor, "rows context"]) -> MemberMixture:
        return MemberMixture(self, context.unflatten(1, (self.members, -1)).movedim(1, 0))

    def posterior(self, prior: Prior) -> DirectPosterior:
        self.member.posterior(prior)  # refuses the priors that a member refuses
        return DirectPosterior(self)

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

    def _log_probs(self, batch: Batch) -> Float[Tensor, "member rows"]:
        return self.each(lambda member: log_prob(member, batch.theta, member.condition(batch.x)))


class MemberMixture:
    """The mixture of the members' densities given x, over the prior's unconstrained space.

    Args:
        ensemble: Whose members.
        context: What each is conditioned on.
    """

    def __init__(self, ensemble: Ensemble, context: Float[Tensor, "member rows context"]) -> None:
        self._ensemble, self._context = ensemble, context

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients, which is so if a member's have."""
        return bool(self._ensemble.ask(0, lambda member: member.density(self._context[0]).has_rsample))

    def log_prob(self, z: Float[Tensor, "*sample rows parameter"]) -> Float[Tensor, "*sample rows"]:
        """log Σ_k w_k q_k(z | x)."""
        few = z.shape[:-1].numel() <= _ROWS_AT_ONCE or torch.is_grad_enabled()
        parts = self._ensemble.each(lambda m, context: m.density(context).log_prob(z), self._context, at_once=few)
        return torch.logsumexp(parts + self._ensemble.log_weights.view(-1, *[1] * (parts.dim() - 1)), 0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*sample rows parameter"]:
        """Independent draws."""
        with torch.no_grad():
            return self._draw(self._independent(math.prod(sample_shape)), "sample", sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*sample rows parameter"]:
        """Draws with gradients, as many of each member as its weight says: their mean varies less than that of others."""
        return self._draw(self._stratified(math.prod(sample_shape)), "rsample", sample_shape)

    def stratified(
        self, sample_shape: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "*sample rows member parameter"], Float[Tensor, "rows member"]]:
        """Draws of every member, with gradients, and the logarithms of the weights."""
        shape = torch.Size(sample_shape)
        z = self._ensemble.each(  # in turn: vmap cannot fill one tensor with several draws
            lambda member, context: member.density(context).rsample(shape), self._context, at_once=False
        )
        return z.movedim(0, -2), self._ensemble.log_weights.expand(self._context.shape[1], -1)

    def rsample_and_log_prob(
        self, sample_shape: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "*sample rows parameter"], Float[Tensor, "*sample rows"]]:
        """Independent draws, with gradients where `has_rsample`, and the log density of each."""
        how = "rsample" if self.has_rsample else "sample"
        z = self._draw(self._independent(math.prod(sample_shape)), how, sample_shape)
        return z, self.log_prob(z)

    def _draw(self, members: Int[Tensor, "draw rows"], how: str, shape: Sequence[int]) -> Tensor:
        """Each draw from the member that is named for it, and from no other."""
        context, drawn, places = self._context, [], []
        for k in range(len(context)):
            place = (members == k).flatten().nonzero()[:, 0]
            given = context[k, place % context.shape[1]]
            drawn.append(self._ensemble.ask(k, lambda member, given: getattr(member.density(given), how)(), given))
            places.append(place)
        z = torch.cat(drawn)[torch.cat(places).argsort()]
        return z.reshape(*shape, context.shape[1], -1)

    def _independent(self, draws: int) -> Int[Tensor, "draw rows"]:
        weights, rows = self._ensemble.log_weights.exp(), self._context.shape[1]
        return torch.multinomial(weights, draws * rows, replacement=True).view(draws, rows)

    def _stratified(self, draws: int) -> Int[Tensor, "draw rows"]:
        """Systematic sampling of members, in a random order that is each row's own."""
        edges = self._ensemble.log_weights.exp().cumsum(0)[:-1]
        rows = self._context.shape[1]
        start, order = (torch.rand(n, rows, device=edges.device) for n in (1, draws))
        points = (torch.arange(draws, device=edges.device)[:, None] + start) / max(draws, 1)
        return torch.searchsorted(edges, points, right=True).gather(0, order.argsort(0))


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
    step = max(1, _ROWS_AT_ONCE // members)
    return (batch.select(slice(start, start + step)) for start in range(0, batch.rows, step))


def _settings(members: Sequence[Estimator]) -> EstimatorSettings:
    if len(members) < 2:
        raise ShapeError(f"`members` of an ensemble must be two or more; got {len(members)}")
    first = members[0]
    if any(type(member) is not type(first) or member.settings != first.settings for member in members):
        raise ShapeError("`members` of an ensemble must have the same settings; got different ones")
    return first.settings.model_copy(update={"ensemble": len(members)})


def _direct(member: Estimator) -> DirectEstimator:
    """The member, if its posterior is the density it has learned: then that of the ensemble is their mixture."""
    if not isinstance(member, DirectEstimator) or not isinstance(member.posterior(member.prior), DirectPosterior):
        raise UnsupportedError(
            f"`ensemble` needs a method that learns a density of theta given x; `{member.settings.method}` "
            "learns something else: use `ensemble: 1`, or `method: npe`"
        )
    member.train()
    return member


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

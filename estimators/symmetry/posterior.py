r"""The posterior of a group-equivariant network: draws by Gibbs chains, and the density that these lose, recovered.

The chains (`gibbs`) leave poses :math:`g_i`. Blurred by the kernel they are draws of the proxy's posterior, whose density is their
mixture, and one step from there is a draw of theta with a density that is known:

.. math:: q(\hat g | x) = \frac1n \sum_i \kappa(g_i^{-1} \hat g), \qquad
    q(\theta, \hat g | x) = q(\hat g | x)\, q(\theta | x, \hat g), \qquad
    q(\theta | x) = \mathbb{E}_{\hat g \sim \kappa(\cdot | \theta)} \frac{q(\hat g | x)\, q(\theta | x, \hat g)}{\kappa(\hat g | \theta)}.

For a network that has learned the posterior the fraction is the same for every proxy. Weighted by prior, likelihood and
:math:`\kappa(\hat g | \theta)` draws of the joint law are exact importance samples, whatever the network is worth: dividing by the
fraction is dividing by :math:`q(\theta, \hat g | x) / \kappa(\hat g | \theta)`. Dax et al. (ICLR 2022),
https://arxiv.org/abs/2111.13139; Dax et al. (2023), https://arxiv.org/abs/2210.05686, who train a flow on proxies for
each observation where here their own mixture serves: it needs no training and is the same for many observations at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Real
from torch import Tensor

from ...data.errors import ShapeError, UnsupportedError
from ..base import Posterior, XLike, seeded
from ..settings import SymmetrySettings
from .gibbs import Convergence, run_chains
from .gnpe import GNPE

logger = logging.getLogger("simfer.estimators.symmetry")

_ENTRIES_AT_ONCE = 2**23  # of x, in one pass: what memory holds
_PAIRS_AT_ONCE = 2**22  # of proxies and components
_LEAST_CHAINS = 64  # of each observation, to see how they fare
_SPREAD = 10  # draws that come from the same chain
_COMPONENTS = 200, 1000  # of the mixture of proxies, for many observations and for few
_ENTRIES_OF_ALL = 2**22  # of x, for the components of all observations
_PROXIES = 8  # of each theta, for its density
_REDRAWS = 30  # of what lies outside the prior's support


@dataclass(frozen=True, slots=True)
class _Proxies:
    """The law of the proxies of some observations.

    Attributes:
        key: The observations.
        poses: Where its components are.
        log_inside: Log share of the draws that lie in the prior's support.
    """

    key: tuple[bytes, ...]
    poses: Float[Tensor, "component observation element"]
    log_inside: Float[Tensor, "observation"]


class GNPEPosterior(Posterior):
    """Asked through Gibbs chains over pose proxies.

    Args:
        estimator: Is put into evaluation mode.

    Attributes:
        diagnostics: How the chains of the last question fared; None before one was asked.
    """

    at_once = 50
    differentiable = False

    def __init__(self, estimator: GNPE) -> None:
        self.estimator = estimator
        self.network = estimator.eval()
        self.observables, self.prior = estimator.observables, estimator.prior
        self.imputes = estimator.settings.impute
        self.diagnostics: Convergence | None = None
        self._known: _Proxies | None = None

    def sample_batched(
        self,
        sample_shape: Sequence[int],
        x: XLike,
        *,
        seed: int | None = None,
        show_progress_bars: bool = False,
        poses: Float[Tensor, "chain observation element"] | None = None,
        progress: Callable[[int], None] = lambda steps: None,
    ) -> Float[Tensor, "*sample_shape observation parameter"]:
        """Draws from chains that have converged.

        Each is the last state of a chain of its own where ``iterations`` or ``poses`` are given. Else a tenth as many chains
        are run until they have converged, and every one goes on as ten, for as many steps as these need to part.

        Args:
            sample_shape: Of the draws of each observation.
            x: Observations.
            seed: Of all randomness; torch's own generator when None.
            show_progress_bars: Without meaning here; see ``progress``.
            poses: Where chains begin, one of each draw; the start's draws when None.
            progress: Called with the number of steps made.
        """
        draws, rows = math.prod(sample_shape), self._on_device(x)
        with torch.no_grad(), seeded(seed):
            theta = self._converged(rows, draws, poses, progress)
        return theta.reshape(*sample_shape, *theta.shape[1:])

    def sample_with_log_prob(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        theta = self.sample_batched(sample_shape, x, seed=seed)
        return theta, self.log_prob_batched(theta, x)

    def propose(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        """Draws of theta and a proxy, and log of the fraction above for each: dividing by it gives the weights of the joint law."""
        draws, rows = math.prod(sample_shape), self._on_device(x)
        known = self._proxies(rows)
        with torch.no_grad(), seeded(seed):
            theta, proxy, log_inside = self._inside(known.poses, rows, draws)
            lp = self._fraction(replace(known, log_inside=log_inside), rows, theta, proxy)
        shape = (*sample_shape, theta.shape[1])
        return theta.reshape(*shape, -1), lp.reshape(shape)

    def log_prob_batched(
        self, theta: Real[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
    ) -> Float[Tensor, "*sample_shape observation"]:
        """Log density, a mean over proxies of theta.

        Raises:
            UnsupportedError: Gradients are asked for.
        """
        if track_gradients:
            raise UnsupportedError(
                "the density of a posterior with `symmetry` is a mean over chains and has no gradient, which attacks and modes "
                "need: ask a network that was trained without, or with `symmetry: {by: augmentation}`"
            )
        rows = self._on_device(x)
        theta = torch.as_tensor(theta).double()
        observations = len(next(iter(rows.values())))
        if theta.shape[-2:] != (observations, self.prior.dim):
            raise ShapeError(
                f"`theta` must have shape (*sample, {observations} observations, {self.prior.dim} parameters); "
                f"got {tuple(theta.shape)}"
            )
        known = self._proxies(rows)
        flat = theta.reshape(-1, *theta.shape[-2:]).to(next(iter(rows.values())).device)
        inside = self.prior.contains(flat)
        middle = self.prior.from_unconstrained(flat.new_zeros(self.prior.dim))
        safe = flat.where(inside[..., None], middle)
        with torch.no_grad(), seeded(0):
            each = [self._fraction(known, rows, safe, self._proxy_of(safe)) for _ in range(_PROXIES)]
        lp = torch.stack(each).logsumexp(0) - math.log(_PROXIES)
        return lp.where(inside, -math.inf).reshape(theta.shape[:-1])

    def rsample(self, sample_shape: Sequence[int], x: XLike) -> Float[Tensor, "*sample_shape observation parameter"]:
        raise UnsupportedError("draws of a posterior with `symmetry` come from chains and have no gradient")

    def to(self, device: str | torch.device) -> GNPEPosterior:
        self.network.to(device)
        self._known = None
        return self

    def _on_device(self, x: XLike) -> dict[str, Tensor]:
        device = next(self.network.parameters()).device
        return {name: values.to(device) for name, values in self._rows(x).items()}

    def _converged(
        self, x: dict[str, Tensor], draws: int, poses: Tensor | None, progress: Callable[[int], None] = lambda n: None
    ) -> Float[Tensor, "draw observation parameter"]:
        if poses is not None or self._iterations is not None:
            return self._chains(x, max(draws, _LEAST_CHAINS), poses, progress)[:draws]
        return self._spread(x, draws, progress)

    def _chains(
        self, x: dict[str, Tensor], chains: int, poses: Tensor | None, progress: Callable[[int], None]
    ) -> Float[Tensor, "chain observation parameter"]:
        symmetry = self.estimator.blur.view.symmetry
        first = self.estimator.first_poses(x, chains) if poses is None else poses.to(next(iter(x.values())).device)
        theta = self.estimator.placed(first)
        back = symmetry.group.inverse(first[0]).repeat(len(first), 1)

        def coordinates(theta: Tensor) -> Tensor:
            g = symmetry.pose(theta.flatten(0, 1))
            return symmetry.group.coordinates(symmetry.group.compose(back, g)).unflatten(0, theta.shape[:2])

        def step(theta: Tensor) -> tuple[Tensor, Tensor]:
            return self._step(x, theta)

        theta, self.diagnostics = run_chains(step, theta, coordinates, self._iterations, self._how.most, progress)
        if not self.diagnostics.trusted:
            logger.warning("%s", self.diagnostics)
        return theta

    def _spread(
        self, x: dict[str, Tensor], draws: int, progress: Callable[[int], None]
    ) -> Float[Tensor, "draw observation parameter"]:
        """Draws of few chains, every one of which goes on as several."""
        chains = self._chains(x, max(math.ceil(draws / _SPREAD), _LEAST_CHAINS), None, progress)
        assert self.diagnostics is not None
        theta = chains.repeat(math.ceil(draws / len(chains)), 1, 1)[:draws]
        for _ in range(self.diagnostics.steps_to_part(math.ceil(draws / len(chains)))):
            theta, _ = self._step(x, theta)
            progress(1)
        return theta

    def _step(self, x: dict[str, Tensor], theta: Float[Tensor, "chain observation parameter"]) -> tuple[Tensor, Tensor]:
        """Blurs poses and draws from there; and which chains moved, the others being about to leave the prior's support."""
        proposed = self._of_rows(lambda x, g: self.estimator.draw(x, g), x, self._proxy_of(theta))
        inside = self.prior.contains(proposed)
        return proposed.where(inside[..., None], theta), inside

    @property
    def _how(self) -> SymmetrySettings:
        how = self.estimator.settings.symmetry
        assert how is not None
        return how

    @property
    def _iterations(self) -> int | None:
        return None if self._how.iterations == "auto" else self._how.iterations

    def _proxy_of(self, theta: Float[Tensor, "chain observation parameter"]) -> Tensor:
        flat = theta.flatten(0, 1)
        eps = self.estimator.blur.kernel.sample(len(flat)).to(flat)
        return self.estimator.blur.proxy(flat, eps).unflatten(0, theta.shape[:2])

    def _proxies(self, x: dict[str, Tensor]) -> _Proxies:
        """The law of the proxies of these observations, kept until others are asked for."""
        key = tuple(values.cpu().numpy().tobytes() for values in x.values())
        if self._known is None or self._known.key != key:
            fewest, most = _COMPONENTS
            entries = len(next(iter(x.values()))) * sum(v.size for v in self.observables)
            components = min(most, max(fewest, _ENTRIES_OF_ALL // entries))
            with torch.no_grad(), seeded(0):
                chains = self._converged(x, components, None)
                poses = self.estimator.blur.view.symmetry.pose(chains.flatten(0, 1)).unflatten(0, chains.shape[:2])
                inside = self.prior.contains(self._joint(poses, x, components)[0]).double().mean(0)
            self._known = _Proxies(key, poses, inside.clamp(min=1 / components).log())
        return self._known

    def _inside(
        self, poses: Float[Tensor, "component observation element"], x: dict[str, Tensor], draws: int
    ) -> tuple[Tensor, Tensor, Float[Tensor, "observation"]]:
        """Draws of `_joint` in the prior's support, and the log share of those that were: then evidences have no bias."""
        theta, proxy = self._joint(poses, x, draws)
        made = torch.full(theta.shape[1:2], float(draws), dtype=torch.float64, device=theta.device)
        for _ in range(_REDRAWS):
            inside = self.prior.contains(theta)
            if inside.all():
                break
            made += (~inside).sum(0)
            new = self._joint(poses, x, draws)
            theta, proxy = (old.where(inside[..., None], other) for old, other in zip((theta, proxy), new, strict=True))
        return theta, proxy, (draws / made).log()

    def _joint(
        self, poses: Float[Tensor, "component observation element"], x: dict[str, Tensor], draws: int
    ) -> tuple[Float[Tensor, "draw observation parameter"], Float[Tensor, "draw observation element"]]:
        """Draws of theta and the proxy that it was drawn from."""
        picked = torch.randint(len(poses), (draws, poses.shape[1])).to(poses.device)
        chosen = poses.gather(0, picked[..., None].expand(-1, -1, poses.shape[2])).flatten(0, 1)
        blur = self.estimator.blur
        proxy = blur.view.symmetry.group.compose(chosen, blur.kernel.sample(len(chosen)).to(chosen))
        proxy = proxy.unflatten(0, (draws, poses.shape[1]))
        return self._of_rows(lambda x, g: self.estimator.draw(x, g), x, proxy), proxy

    def _fraction(
        self, known: _Proxies, x: dict[str, Tensor], theta: Tensor, proxy: Tensor
    ) -> Float[Tensor, "draw observation"]:
        """Log of q(proxy | x) q(theta | x, proxy) / kappa(proxy | theta), over theta in the prior's support."""
        blur, shape = self.estimator.blur, theta.shape[:2]
        group = blur.view.symmetry.group
        back = group.inverse(blur.view.symmetry.pose(theta.flatten(0, 1)))
        kappa = blur.kernel.log_prob(group.compose(back, proxy.flatten(0, 1))).unflatten(0, shape)
        given = self._of_rows(lambda x, g, theta: self.estimator.log_prob(theta, x, g), x, proxy, theta)
        return self._log_proxy(known, proxy) + given - kappa - known.log_inside

    def _log_proxy(self, known: _Proxies, proxy: Float[Tensor, "draw observation element"]) -> Tensor:
        group, kernel = self.estimator.blur.view.symmetry.group, self.estimator.blur.kernel
        components, observations, _ = known.poses.shape
        back = group.inverse(known.poses.flatten(0, 1)).unflatten(0, (components, observations))

        def of(part: Tensor) -> Tensor:
            shape = (components, *part.shape[:2])
            pairs = [values.expand(*shape, -1).flatten(0, 2) for values in (back[:, None], part[None])]
            return kernel.log_prob(group.compose(*pairs)).unflatten(0, shape).logsumexp(0) - math.log(components)

        return torch.cat([of(part) for part in proxy.split(max(1, _PAIRS_AT_ONCE // (components * observations)))])

    def _of_rows(
        self,
        ask: Callable[..., Tensor],
        x: dict[str, Tensor],
        *values: Float[Tensor, "draw observation _"],
    ) -> Tensor:
        """What is asked of every draw with the x of its observation, as many at once as memory holds."""
        draws, observations = values[0].shape[:2]
        index = torch.arange(draws * observations, device=values[0].device)
        flat = [v.flatten(0, 1) for v in values]
        most = max(1, _ENTRIES_AT_ONCE // sum(v.size for v in self.observables))
        parts = [
            ask({name: rows[part % observations] for name, rows in x.items()}, *(v[part] for v in flat))
            for part in index.split(most)
        ]
        return torch.cat(parts).unflatten(0, (draws, observations))

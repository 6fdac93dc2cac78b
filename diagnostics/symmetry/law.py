r"""Is T_g x, for x simulated at theta, distributed as x simulated at g theta? Tests that know g theta.

Three rows belong to each g theta: A = T_g x, and B, B' simulated there. Under the hypothesis A and B, and given B also A and B',
may change places, row by row; signs of what is antisymmetric in them are then tosses of a coin, and p-values are exact.

**Entries**: :math:`(A - B)^2 - (B' - B)^2` of every entry, by Wilcoxon's signed-rank test, Bonferroni over entries.

**Jointly**: the kernel statistic of Gretton et al., "A kernel two-sample test", JMLR 13 (2012), 723, with the kernel of x
multiplied by one of g theta, :math:`\sum_{i \ne j} k(\theta_i, \theta_j)\, [k(A_i, A_j) + k(B_i, B_j) - k(A_i, B_j) - k(B_i, A_j)]`,
on the largest principal components of x; and, where the likelihood is known, Wilcoxon's test of log p(A | g theta) against
log p(B | g theta).
"""

from __future__ import annotations

import numpy as np
import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from ...data.variables import Variables
from ...simulators.base import HasLikelihood
from ..base import says_p
from .agreement import entry_name
from .noise import SharedNoise
from .pairs import Data, Pairs, flat
from .result import Finding

_COMPONENTS = 10
_MOST_ROWS = 1000  # of the kernel statistic
_FLIPS = 9999
_ADVICE = (
    "T_g x is distributed otherwise than x at g theta: the declared sign, units or axis may be wrong, or the noise does not "
    "move along."
)


def equal_in_law(pairs: Pairs, shared: SharedNoise, observables: Variables, alpha: float) -> list[Finding]:
    """Both tests; none where x has no noise."""
    if shared.kind == "none":
        words = "x has no noise: compared exactly"
        return [Finding(name, "not tested", words) for name in ("entries", "distribution")]
    acted = pairs.act(pairs.g, shared.x)
    anew, once_more = (pairs.at("moved", noise) for noise in (3, 4))
    return [_entries(acted, anew, once_more, observables, alpha), _jointly(pairs, acted, anew, alpha)]


def _entries(acted: Data, anew: Data, once_more: Data, observables: Variables, alpha: float) -> Finding:
    excess = (flat(acted) - flat(anew)).square() - (flat(once_more) - flat(anew)).square()
    p = _wilcoxon(excess.numpy())
    names = [(name, place) for name in acted for place in np.ndindex(acted[name].shape[1:])]
    first = int(np.argmin(p))
    p_value = float(min(1.0, p[first] * len(p)))
    numbers = {"p_value": p_value, "entries_below_alpha": float((p * len(p) < alpha).sum())}
    found = f"entry by entry as expected ({says_p(p_value)})"
    if p_value >= alpha:
        return Finding("entries", "pass", found, numbers)
    where = entry_name(*names[first], observables)
    count = int(numbers["entries_below_alpha"])
    text = f"{count} of {len(p)} entries are distributed otherwise, most clearly {where} ({says_p(p_value)})"
    return Finding("entries", "fail", text, numbers, _ADVICE)


def _jointly(pairs: Pairs, acted: Data, anew: Data, alpha: float) -> Finding:
    p = {"kernel": kernel_test(pairs, acted, anew)}
    if isinstance(pairs.simulator, HasLikelihood):
        p["likelihood"] = _likelihood_test(pairs, pairs.simulator, acted, anew)
    p_value = min(1.0, len(p) * min(p.values()))
    numbers = {"p_value": p_value, **{f"p_{name}": value for name, value in p.items()}}
    by = " and ".join(p)
    if p_value >= alpha:
        return Finding("distribution", "pass", f"the same by {by} ({says_p(p_value)})", numbers)
    least = min(p, key=lambda name: p[name])
    return Finding("distribution", "fail", f"another by the {least} ({says_p(p_value)})", numbers, _ADVICE)


def kernel_test(pairs: Pairs, acted: Data, anew: Data) -> float:
    """The p-value of the kernel statistic, by flips of signs."""
    first, second = (flat(x)[:_MOST_ROWS] for x in (acted, anew))
    first, second = _components(first, second)
    theta = pairs.prior.to_unconstrained(pairs.moved[:_MOST_ROWS])
    both = torch.cat([first, second])
    kernel, n = _gaussian(both), len(first)
    aa, bb, ab = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    statistic = _gaussian(theta) * (aa + bb - ab - ab.T)
    statistic.fill_diagonal_(0.0)
    generator = torch.Generator().manual_seed(pairs.seed)
    signs = 2.0 * torch.randint(2, (_FLIPS, n), generator=generator).double() - 1
    flipped = ((signs @ statistic) * signs).sum(1)
    return float((1 + (flipped >= statistic.sum()).sum()) / (1 + _FLIPS))


def _likelihood_test(pairs: Pairs, simulator: HasLikelihood, acted: Data, anew: Data) -> float:
    known = (pairs.context,) if pairs.context else ()
    one, other = (
        simulator.log_likelihood(pairs.moved.numpy(), {name: values.numpy() for name, values in x.items()}, *known)
        for x in (acted, anew)
    )
    return float(_wilcoxon((one - other)[:, None])[0])


def _components(
    first: Float[Tensor, "rows entry"], second: Float[Tensor, "rows entry"]
) -> tuple[Float[Tensor, "rows component"], Float[Tensor, "rows component"]]:
    both = torch.cat([first, second])
    sd = both.std(0)
    scaled = (both - both.mean(0)) / torch.where(sd > 0, sd, 1.0)
    axes = torch.linalg.eigh(scaled.T @ scaled).eigenvectors[:, -_COMPONENTS:]
    scores = scaled @ axes
    return scores[: len(first)], scores[len(first) :]


def _gaussian(values: Float[Tensor, "rows entry"]) -> Float[Tensor, "rows rows"]:
    """The Gaussian kernel whose width is the median distance."""
    apart = torch.cdist(values, values).square()
    return torch.exp(-apart / apart[apart > 0].median())


def _wilcoxon(values: Float[np.ndarray, "rows entry"]) -> Float[np.ndarray, "entry"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        p = scipy.stats.wilcoxon(values, axis=0, method="asymptotic", keepdims=True).pvalue
    return np.nan_to_num(np.asarray(p)[0], nan=1.0)

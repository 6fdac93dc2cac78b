r"""Is the prior invariant, :math:`p(g\theta)\, |\det J_g| = p(\theta)` wherever both lie in its support?

Without it the posterior is not equivariant, however symmetric the simulator is: exact group-equivariant inference, whose
network does not see where the pose was, then forgets that the prior prefers some poses. No prior on part of a group is invariant
beyond its edges.
"""

from __future__ import annotations

import math

from ...data.variables import Variable
from ...estimators.symmetry.invariance import log_change
from .pairs import Pairs
from .result import Finding

_SAME = 1e-6


def prior_invariance(pairs: Pairs) -> Finding:
    """Compare the prior's density at theta and at g theta, and see whether g takes theta out of it."""
    symmetry, prior, theta, g = pairs.symmetry, pairs.prior, pairs.theta, pairs.g
    change = log_change(symmetry, prior, theta, g)
    left = float((~prior.contains(symmetry.act_theta(g, pairs.moved))).double().mean())
    numbers = {"largest_change": float(change.abs().max()), "left_when_moved_twice": left}
    if not numbers["largest_change"] < _SAME:
        return Finding(
            "prior",
            "fail",
            f"log p(g theta) |det| differs from log p(theta) by up to {numbers['largest_change']:.3g}",
            numbers,
            "Exact equivariance is wrong without importance weights; let the network see the proxy (approximate "
            "equivariance), or give the pose an invariant prior: uniform for positions, times and angles, log-uniform for "
            "factors.",
        )
    if left == 0:
        return Finding("prior", "pass", "the prior is invariant, and has no edges", numbers)
    circular = symmetry.group.circular
    angles = circular if len(circular) == len(symmetry.parameters) else (False,) * len(symmetry.parameters)
    bounded = [prior.variables[name] for name, angle in zip(symmetry.parameters, angles, strict=True) if not angle]
    ends = "; ".join(_ends(variable) for variable in bounded)
    return Finding(
        "prior",
        "pass",
        f"the prior is invariant inside its support ({ends})",
        numbers,
        "Near the edges the posterior is cut: give draws outside the prior the weight 0, and see that poses that matter lie "
        "inside by more than the width of the kernel.",
    )


def _ends(variable: Variable) -> str:
    low, high = variable.support.low, variable.support.high
    ends = "unbounded" if math.isinf(low) and math.isinf(high) else f"{low:.4g} to {high:.4g}"
    return f"{variable.name} {ends}"

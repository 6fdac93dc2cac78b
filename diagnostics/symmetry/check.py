"""The check of a symmetry that a simulator declares: all questions, in the order in which wrong answers are best mended."""

from __future__ import annotations

from typing import Any

import torch

from ...data.errors import SymmetryError
from ...estimators.symmetry.build import build_symmetry
from ...simulators.base import ContextPrior, HasSymmetry, Simulator, context_of
from ...simulators.prior import Prior
from .agreement import same_noise
from .invariance import prior_invariance
from .law import equal_in_law
from .laws import determinants, theta_laws, x_laws
from .noise import share_noise
from .pairs import draw_pairs
from .result import SymmetryCheck


def check_symmetry(
    simulator: Simulator,
    *,
    symmetry: Any = None,
    prior: Prior | None = None,
    context: ContextPrior | None = None,
    rows: int = 500,
    seed: int = 0,
    alpha: float = 1e-3,
) -> SymmetryCheck:
    """Test whether moving the parameters moves the data, and whether the prior lets the posterior move along.

    Args:
        simulator: The forward model; about ten times ``rows`` simulations are made.
        symmetry: A declaration, or a `Symmetry`, in place of the simulator's own.
        prior: In place of the simulator's own.
        context: Of the known nuisance, in place of the simulator's own.
        rows: How many parameters are moved.
        seed: Of parameters and noise.
        alpha: A symmetry that holds fails each test in distribution this often.

    Raises:
        SymmetryError: None is declared, or it does not fit the simulator.
    """
    declared = simulator.symmetry if symmetry is None and isinstance(simulator, HasSymmetry) else symmetry
    name = type(simulator).__name__
    if declared is None:
        raise SymmetryError(
            f"`{name}` declares no symmetry: give it an attribute such as symmetry = {{'time': Shift(...)}}, from "
            "simfer.simulators.symmetry"
        )
    prior, context = prior or simulator.prior, context or context_of(simulator)
    built = build_symmetry(prior, simulator.observables, declared)
    with torch.no_grad():
        pairs = draw_pairs(simulator, prior, context, built, rows, seed)
        shared = share_noise(pairs)
        findings = [theta_laws(pairs), x_laws(pairs, shared), prior_invariance(pairs)]
        findings += [same_noise(shared, simulator.observables)]
        findings += equal_in_law(pairs, shared, simulator.observables, alpha)
    findings.insert(2, determinants(pairs, shared))
    return SymmetryCheck(name, built.parameters, len(pairs.theta), tuple(findings))

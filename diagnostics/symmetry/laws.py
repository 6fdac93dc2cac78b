"""What holds of every group action: identity, inverse, composition, poses that move along, and volumes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ...estimators.symmetry.base import Symmetry, distance
from .noise import SharedNoise
from .pairs import Data, Pairs, minus, rms, spread
from .result import Finding

_EXACT = 1e-5  # of the spread of theta: times in seconds since 1970 have no more digits
_CLOSE = 0.1  # of the spread of x
_ROWS = 8  # for derivatives
_LARGEST = 2500  # entries of x whose matrix of derivatives is still made


def theta_laws(pairs: Pairs) -> Finding:
    """The laws of a group acting on theta, which hold to float precision."""
    symmetry, g, h, theta = pairs.symmetry, pairs.g, pairs.h, pairs.theta
    act, group = symmetry.act_theta, symmetry.group
    errors = {
        "identity": _apart(symmetry, act(group.identity(len(theta)), theta), theta),
        "inverse": _apart(symmetry, act(group.inverse(g), pairs.moved), theta),
        "composition": _apart(symmetry, act(h, pairs.moved), act(group.compose(h, g), theta)),
        "pose": _poses_apart(symmetry, symmetry.pose(pairs.moved), group.compose(g, symmetry.pose(theta)), theta),
        "place": _poses_apart(symmetry, symmetry.pose(symmetry.place(theta, g)), g, theta),
    }
    broken = [name for name, error in errors.items() if not error < _EXACT]
    text = _listed(errors)
    if not broken:
        return Finding("theta", "pass", f"the group acts on theta; largest errors, in sd: {text}", errors)
    advice = f"The action on theta breaks {', '.join(broken)}: mend `act_theta`, `pose` and `place` of the symmetry."
    return Finding("theta", "fail", f"no action of the group on theta; largest errors, in sd: {text}", errors, advice)


def x_laws(pairs: Pairs, shared: SharedNoise) -> Finding:
    """The laws of a group acting on x, approximately where data are resampled; of the signal alone where noise drops out."""
    g, h, group = pairs.g, pairs.h, pairs.symmetry.group
    identity, unit = group.identity(len(g)), spread(shared.x)
    kept = _moved(pairs, shared)
    errors = {
        "identity": rms(minus(_moved(pairs, shared, identity), kept), unit),
        "inverse": rms(minus(_moved(pairs, shared, g, group.inverse(g)), kept), unit),
        "composition": rms(minus(_moved(pairs, shared, g, h), _moved(pairs, shared, group.compose(h, g))), unit),
    }
    text = f"{_listed(errors)} of the spread of x (rms)"
    what = "x, noise included," if shared.kind == "other" else "x"
    if errors["identity"] < _EXACT and max(errors.values()) < _CLOSE:
        return Finding("x", "pass", f"the group acts on {what} up to: {text}", errors)
    if shared.kind == "other" and errors["identity"] < _EXACT:
        return Finding(
            "x", "not tested", f"the noise cannot be told from x, and with it the laws hold up to: {text}", errors
        )
    advice = "T_g T_h must be T_gh, and the inverse must undo T_g: mend `act_x` of the symmetry."
    return Finding("x", "fail", f"no action of the group on x: {text}", errors, advice)


def determinants(pairs: Pairs, shared: SharedNoise) -> Finding:
    """The declared log-determinants against those of the matrices of derivatives."""
    some = slice(0, _ROWS)
    symmetry, g, theta = pairs.symmetry, pairs.g[some], pairs.theta[some]
    rows = range(len(theta))
    of_theta = torch.stack(
        [_log_det(lambda t, i=i: symmetry.act_theta(g[i : i + 1], t[None])[0], theta[i]) for i in rows]
    )
    errors = {"theta": float((of_theta - symmetry.log_det_theta(g, theta)).abs().max())}
    first = {name: values[:1] for name, values in shared.x.items()}
    size = sum(values.numel() for values in first.values())
    if size <= _LARGEST:
        declared = symmetry.log_det_x(g[:1], first)
        errors["x"] = float((_log_det_x(symmetry, g[:1], first) - declared).abs().max()) / size
    left = "" if "x" in errors else f"; x, of {size} entries, is too large to try"
    wrong = [name for name, error in errors.items() if not error < _EXACT]
    if not wrong:
        return Finding("volume", "pass", f"log-determinants are right: errors {_listed(errors)}{left}", errors)
    advice = f"Mend `log_det_{wrong[0]}` of the symmetry: densities of moved {wrong[0]} would be wrong."
    return Finding("volume", "fail", f"log-determinants are off by {_listed(errors)}{left}", errors, advice)


def _moved(pairs: Pairs, shared: SharedNoise, *elements: Tensor) -> Data:
    """x moved by one element after the other, without noise where that can be."""
    x, partner = shared.x, shared.partner
    for element in elements:
        x, partner = pairs.act(element, x), pairs.act(element, partner)
    return shared.without_noise(x, partner)


def _apart(
    symmetry: Symmetry, first: Float[Tensor, "rows parameter"], second: Float[Tensor, "rows parameter"]
) -> float:
    """Largest difference, in the spread of theta; poses by their distance, since angles have several values."""
    identity = symmetry.group.identity(len(first))
    rest = symmetry.place(first, identity) - symmetry.place(second, identity)
    others = float((rest.abs() / _scale(second)).max())
    return max(others, _poses_apart(symmetry, symmetry.pose(first), symmetry.pose(second), second))


def _poses_apart(symmetry: Symmetry, first: Tensor, second: Tensor, theta: Tensor) -> float:
    names = symmetry.group.coordinates(symmetry.pose(theta))
    return float(distance(symmetry.group, first, second).max() / _scale(names).min())


def _scale(values: Tensor) -> Tensor:
    sd = values.std(0)
    return torch.where(sd > 0, sd, 1.0)


def _log_det(function: object, at: Tensor) -> Tensor:
    matrix = torch.autograd.functional.jacobian(function, at, vectorize=True)
    return torch.linalg.slogdet(matrix).logabsdet


def _log_det_x(symmetry: Symmetry, g: Tensor, x: Data) -> Tensor:
    sizes = {name: values.shape for name, values in x.items()}

    def moved(entries: Tensor) -> Tensor:
        parts = entries.split([math.prod(shape) for shape in sizes.values()])
        named = {name: part.reshape(shape) for (name, shape), part in zip(sizes.items(), parts, strict=True)}
        return torch.cat([values.reshape(-1) for values in symmetry.act_x(g, named).values()])

    return _log_det(moved, torch.cat([values.reshape(-1) for values in x.values()]))


def _listed(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} {error:.2g}" for name, error in errors.items())

r"""The contracts of equivariance: a group, how it acts on theta and on x, and the kernel that blurs a pose.

A simulator is symmetric under a group if moving the parameters moves the data, :math:`T_g x \sim p(x | g\theta)` for
:math:`x \sim p(x | \theta)`. Where the prior is invariant too, so is the posterior,
:math:`p(\theta | x) = p(g\theta | T_g x)\, |\det J_g|`. The pose :math:`g_\theta` is the element that theta carries, with
:math:`g_{g\theta} = g\, g_\theta`. A proxy of it is :math:`\hat g = g_\theta \varepsilon`, blurred from the **right**, so
that :math:`\hat g^{-1} g_\theta = \varepsilon^{-1}` depends on the blur alone, for groups that do not commute as well. Dax et
al., "Group equivariant neural posterior estimation" (ICLR 2022), https://arxiv.org/abs/2111.13139.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Real
from torch import Tensor


@runtime_checkable
class Group(Protocol):
    """A group whose elements are rows of numbers; all methods take many elements at once.

    Attributes:
        dim: How many numbers an element is.
    """

    @property
    def dim(self) -> int: ...

    def identity(self, rows: int) -> Real[Tensor, "rows element"]:
        """The neutral element, so many times."""
        ...

    def inverse(self, g: Real[Tensor, "rows element"]) -> Real[Tensor, "rows element"]:
        """g^-1."""
        ...

    def compose(self, g: Real[Tensor, "rows element"], h: Real[Tensor, "rows element"]) -> Real[Tensor, "rows element"]:
        """g h, which acts as h first and g then."""
        ...


@runtime_checkable
class LieGroup(Group, Protocol):
    r"""A group with coordinates about the identity, which kernels need.

    A density here is one with respect to the left-invariant (Haar) measure :math:`\mu`, which equals that of the coordinates
    at the identity: :math:`d\mu = e^{\mathrm{log\_haar}(v)} dv`. Then :math:`\hat g = g_\theta \varepsilon` has at
    :math:`\hat g` the density that :math:`\varepsilon` has at :math:`g_\theta^{-1} \hat g`, without a Jacobian.

    Attributes:
        freedom: How many coordinates there are.
        circular: Which of them are angles in radians, alike after a full turn.
    """

    @property
    def freedom(self) -> int: ...

    @property
    def circular(self) -> tuple[bool, ...]: ...

    def element(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows element"]:
        """The element with these coordinates; 0 is the identity."""
        ...

    def coordinates(self, g: Float[Tensor, "rows element"]) -> Float[Tensor, "rows coordinate"]:
        """The coordinates of an element nearest to 0."""
        ...

    def log_haar(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "rows"]:
        """Log density of the Haar measure with respect to that of the coordinates."""
        ...

    def turns(self, v: Float[Tensor, "rows coordinate"]) -> Float[Tensor, "turn rows coordinate"]:
        """All coordinates of the same element, up to three full turns away."""
        ...


@runtime_checkable
class Symmetry(Protocol):
    """How a group acts on theta and on x. theta is in the order of the prior, x as named tensors with rows first.

    Attributes:
        group: Of the poses.
        parameters: Entries of theta that carry the pose.
    """

    @property
    def group(self) -> LieGroup: ...

    @property
    def parameters(self) -> tuple[str, ...]: ...

    def pose(self, theta: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows element"]:
        """The element that theta carries: ``pose(act_theta(g, theta)) = compose(g, pose(theta))``."""
        ...

    def place(
        self, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        """Theta with the entries that carry its pose set to g, all others as they are."""
        ...

    def act_theta(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows parameter"]:
        """G theta; all parameters, also those that move along without carrying the pose."""
        ...

    def log_det_theta(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows"]:
        """log |d(g theta) / d theta|."""
        ...

    def act_x(self, g: Float[Tensor, "rows element"], x: dict[str, Tensor]) -> dict[str, Tensor]:
        """T_g x, in the dtypes of x; observables that the group does not touch are handed through."""
        ...

    def log_det_x(self, g: Float[Tensor, "rows element"], x: dict[str, Tensor]) -> Float[Tensor, "rows"]:
        """log |d(T_g x) / dx|."""
        ...


@runtime_checkable
class Pose(Protocol):
    """How a group acts on theta: the part of a `Symmetry` that knows no data.

    Attributes:
        parameters: Entries of theta that carry the pose.
    """

    @property
    def parameters(self) -> tuple[str, ...]: ...

    def of(self, theta: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows element"]:
        """The element that theta carries."""
        ...

    def place(
        self, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        """Theta with its pose set to g."""
        ...

    def act(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows parameter"]:
        """G theta."""
        ...

    def log_det(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows"]:
        """log |d(g theta) / d theta|."""
        ...


@runtime_checkable
class Action(Protocol):
    """How a group acts on one observable."""

    def __call__(
        self, g: Real[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *shape"]:
        """T_g x."""
        ...

    def log_det(self, g: Real[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        """log |d(T_g x) / dx|."""
        ...


@runtime_checkable
class Kernel(Protocol):
    """What blurs a pose: epsilon, near the identity."""

    @property
    def group(self) -> LieGroup: ...

    def sample(self, rows: int) -> Float[Tensor, "rows element"]:
        """Draws of epsilon from torch's global generator, float64."""
        ...

    def log_prob(self, eps: Float[Tensor, "rows element"]) -> Float[Tensor, "rows"]:
        r"""Log density with respect to the Haar measure of `LieGroup`.

        :math:`\log \kappa(\hat g | \theta)` is that of :math:`g_\theta^{-1} \hat g`.
        """
        ...


def distance(
    group: LieGroup, g: Float[Tensor, "rows element"], h: Float[Tensor, "rows element"]
) -> Float[Tensor, "rows"]:
    """Length of the coordinates of g^-1 h: left-invariant, 0 where g = h."""
    return group.coordinates(group.compose(group.inverse(g), h)).norm(dim=-1)


def wrapped(angle: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The same angle, within half a turn of 0."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))

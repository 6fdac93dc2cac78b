"""What is alike within an observable: which entries share their statistics, and which are there at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..data.variables import Variable

Sharing = Literal["entry", "channel", "all"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the entries of one observable are standardised.

    Attributes:
        standardise: Every ``entry`` by itself, all of a ``channel`` alike, or ``all`` alike.
        channel_axis: Which axis holds channels; None where there is none.
        mask: The observable that says which members, along the first axis that holds no channels, are there.
    """

    standardise: Sharing = "entry"
    channel_axis: int | None = None
    mask: str | None = None

    def groups(self, variable: Variable) -> Int64[Tensor, "entry"]:
        """Entries with the same number share their statistics; numbers run from 0 without gaps."""
        entries = torch.arange(variable.size)
        if self.standardise == "entry":
            return entries
        if self.standardise == "all" or self.channel_axis is None:
            return torch.zeros_like(entries)
        inside = math.prod(variable.shape[self.channel_axis + 1 :])
        return entries // inside % variable.shape[self.channel_axis]

    def entries_present(self, variable: Variable, x: Mapping[str, Tensor]) -> Bool[Tensor, "rows entry"] | None:
        """Which entries of a flattened row are there; None where all are."""
        if self.mask is None:
            return None
        mask = x[self.mask]
        members = members_present(mask.reshape(len(mask), -1), variable.shape[self.member_axis])
        shape = [n if axis == self.member_axis else 1 for axis, n in enumerate(variable.shape)]
        return members.reshape(-1, *shape).expand(-1, *variable.shape).reshape(-1, variable.size)

    @property
    def member_axis(self) -> int:
        """The first axis that holds no channels."""
        return 1 if self.channel_axis == 0 else 0


def members_present(mask: Tensor, members: int) -> Bool[Tensor, "rows member"]:
    """Which members are there: the first so many, from their number ``(rows, 1)``, or those with a 1."""
    if mask.shape[1] == 1:
        return torch.arange(members, device=mask.device) + 0.5 < mask
    return mask > 0.5

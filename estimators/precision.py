"""Mixed precision for what is robust to it: embeddings follow Lightning's ``precision``, densities stay in float32.

Rounded to the 8 bits of bfloat16, a log density is off by 0.4 % of its value, nats where it is large; summaries of x are not
that delicate, and they are where the arithmetic is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> torch.autocast:
    """Context in which a density of float32 tensors beside this one is evaluated as they are."""
    return torch.autocast(tensor.device.type, enabled=False)

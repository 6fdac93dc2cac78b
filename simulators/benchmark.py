"""The ten observations of each task of the SBI benchmark, as its package ships them.

Lueckmann et al. (2021), https://arxiv.org/abs/2101.04653; ``sbibm_observations.json`` names version and licence.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..data.errors import UnknownNameError, did_you_mean

Observations = dict[str, dict[str, list[float]]]


def observations(task: str, observable: str = "x") -> Observations:
    """``observation_1`` … ``observation_10`` of a task, flat and in the benchmark's order.

    Args:
        task: Its name in the benchmark, such as ``slcp``.
        observable: What the simulator calls its only observable.

    Raises:
        UnknownNameError: No such task.
    """
    known = _shipped()
    if task not in known:
        raise UnknownNameError(f"`task` must be one of the SBI benchmark; got `{task}`; {did_you_mean(task, known)}")
    return {f"observation_{k}": {observable: [float(v) for v in row]} for k, row in enumerate(known[task], start=1)}


@cache
def _shipped() -> dict[str, list[list[Any]]]:
    text = Path(__file__).with_name("sbibm_observations.json").read_text(encoding="utf-8")
    rows: dict[str, list[list[Any]]] = json.loads(text)["observations"]
    return rows

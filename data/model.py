"""The model folder: ``model.json`` says how to rebuild the estimator, ``weights.safetensors`` holds its numbers.

No pickle, and loading runs no code from the files: ``model.json`` names things, and only registered names are found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import MissingFileError, ModelFormatError
from .files import new_folder, write_json

SCHEMA_VERSION = 1


def write_model(folder: Path, description: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write a model folder in one step, replacing an older one."""
    with new_folder(folder) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
            temporary / "weights.safetensors",
        )
        write_json(temporary / "model.json", {"schema_version": SCHEMA_VERSION, **description})


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model folder: its description, and its weights on the CPU.

    Raises:
        MissingFileError: No such folder, or a file of it is missing.
        ModelFormatError: Damaged, or of another schema version.
    """
    for name in ("model.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise MissingFileError(f"no model at {folder}: it has no `{name}`")
    try:
        description: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ModelFormatError(f"the model at {folder} is damaged ({error}): train it again") from error
    version = description.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ModelFormatError(
            f"the model at {folder} has schema version {version}; this simfer reads version {SCHEMA_VERSION}: "
            "load it with the simfer that wrote it"
        )
    return description, weights

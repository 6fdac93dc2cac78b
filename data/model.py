"""The model folder: ``model.json`` says how to rebuild the estimator, ``weights.safetensors`` holds its numbers.

No pickle, and loading runs no code from the files: ``model.json`` names things, and only registered names are found.
Each file is held to a checksum in ``model.json``, which finds accidents; whoever forges a file can forge its checksum.

Schema versions: 1 had no checksums; 2 has them, and the range of the training data among the weights. A new version
comes with a function in ``_MIGRATIONS`` that makes its description of the former one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import MissingFileError, ModelFormatError
from .files import fingerprint, new_folder, write_json

SCHEMA_VERSION = 2
_DESCRIPTION, _WEIGHTS = "model.json", "weights.safetensors"


def write_model(folder: Path, description: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write a model folder in one step, replacing an older one."""
    packed = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    described = {
        "schema_version": SCHEMA_VERSION,
        **description,
        "weights_bytes": len(packed),
        "weights_sha256": hashlib.sha256(packed).hexdigest(),
    }
    with new_folder(folder) as temporary:
        (temporary / _WEIGHTS).write_bytes(packed)
        write_json(temporary / _DESCRIPTION, {**described, "sha256": fingerprint(described)})


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model folder: its description in the present schema, and its weights on the CPU.

    Raises:
        MissingFileError: No such folder, or a file of it is missing.
        ModelFormatError: Damaged or changed, or of a newer schema version.
    """
    for name in (_DESCRIPTION, _WEIGHTS):
        if not (folder / name).is_file():
            raise MissingFileError(f"no model at {folder}: it has no `{name}`")
    description = _description(folder)
    packed = (folder / _WEIGHTS).read_bytes()
    _check_weights(folder, description, packed)
    try:
        return description, load(packed)
    except SafetensorError as error:
        raise _damaged(folder, _WEIGHTS, str(error)) from error


def _description(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, _DESCRIPTION, f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(folder, _DESCRIPTION, "it must be an object")
    version = _version(folder, found)
    if version == SCHEMA_VERSION:
        _check_description(folder, found)
    for older in range(version, SCHEMA_VERSION):
        found = _MIGRATIONS[older](found)
    return found


def _version(folder: Path, description: dict[str, Any]) -> int:
    version = description.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise _damaged(folder, _DESCRIPTION, f"`schema_version` must be a whole number from 1; got {version!r}")
    if version > SCHEMA_VERSION:
        raise ModelFormatError(
            f"the model at {folder} has schema version {version}, and this simfer reads up to {SCHEMA_VERSION}: "
            "load it with the simfer that wrote it, or upgrade simfer"
        )
    return version


def _check_description(folder: Path, description: dict[str, Any]) -> None:
    rest = {key: value for key, value in description.items() if key != "sha256"}
    try:
        intact = description.get("sha256") == fingerprint(rest)
    except ValueError:  # NaN or infinity, which was never written
        intact = False
    if not intact:
        raise _damaged(folder, _DESCRIPTION, "it was changed after it was written: its checksum does not fit")


def _check_weights(folder: Path, description: dict[str, Any], packed: bytes) -> None:
    if "weights_sha256" not in description:  # version 1
        return
    size = description.get("weights_bytes")
    if len(packed) != size:
        raise _damaged(folder, _WEIGHTS, f"it has {len(packed)} bytes of {size}")
    if hashlib.sha256(packed).hexdigest() != description["weights_sha256"]:
        raise _damaged(folder, _WEIGHTS, "it was changed after it was written: its checksum does not fit")


def _damaged(folder: Path, name: str, reason: str) -> ModelFormatError:
    return ModelFormatError(
        f"the model at {folder} is damaged, `{name}`: {reason}; restore the folder or train it again"
    )


def _from_1(description: dict[str, Any]) -> dict[str, Any]:
    return {**description, "schema_version": 2}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}

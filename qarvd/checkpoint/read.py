"""Read the tensors of a checkpoint file, of whatever kind, without ever running code from it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..files import has_suffix, no_file
from .naming import normalise, unwrap

STATISTICS = "qarvd_calibration"
"""Key of the metadata by which a file of statistics is told from a model."""
PICKLED = (".pt", ".pth", ".ckpt", ".bin")

DAMAGED = (
    *(UnpicklingError, EOFError, OSError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error),
)
"""What torch's reader of plain tensors raises; those of the second line where it trips over damaged bytes."""


@dataclass(frozen=True)
class Contents:
    """A file's tensors under Wan's names, and its text metadata."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]

    def json(self, key: str) -> dict[str, Any]:
        """The JSON object that the metadata holds under `key`; empty where there is none."""
        if key not in self.metadata:
            return {}
        try:
            value = json.loads(self.metadata[key])
        except (json.JSONDecodeError, RecursionError) as error:
            raise CheckpointError(f"The metadata {key!r} of {self.path} is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"The metadata {key!r} of {self.path} is not a JSON object.")
        return value


def read(path: Path) -> Contents:
    """Read a safetensors file, or a torch file as plain tensors only. Raises CheckpointError for anything else."""
    if not path.is_file():
        raise CheckpointError(no_file(path))
    if has_suffix(path, ".safetensors"):
        tensors, metadata = _read_safetensors(path)
    elif has_suffix(path, *PICKLED):
        tensors, metadata = _read_torch(path), {}
    else:
        raise CheckpointError(f"{path} is neither a .safetensors file nor one of {', '.join(PICKLED)}.")
    return Contents(path, normalise(tensors), metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}). Download or write it again."
        ) from error


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} is truncated, or holds more than plain tensors, which could run code. Download it again, or get "
            "it as a safetensors file."
        ) from error
    tensors = unwrap(content) if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name; a model's state dict was expected.")
    return tensors

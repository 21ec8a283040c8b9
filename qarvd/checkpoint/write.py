"""Write safetensors files that are the same bytes whenever their content is the same."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import torch as safetensors
from torch import Tensor


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """As `safetensors.torch.save_file`, with the metadata, which that writes in any order, in the order of its keys.

    Tied tensors, which that refuses, are each written whole.
    """
    safetensors.save_file(untied(tensors), path, dict(metadata))
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "another order of the same keys takes no more room"
        file.seek(8)
        file.write(text.ljust(size))


def untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a CPU, contiguous, with a copy of each that shares memory with another."""
    found = {key: tensor.contiguous() for key, tensor in tensors.items()}
    end = 0
    for key in sorted(found, key=lambda key: found[key].data_ptr()):
        tensor = found[key]
        begin = tensor.data_ptr()
        if tensor.nbytes and begin < end:
            found[key] = tensor.clone()
        end = max(end, begin + tensor.nbytes)
    return found

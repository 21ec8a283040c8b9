"""One tensor as an op expects it, or a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ShapeError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def expect(
    name: str, x: Tensor, shape: Sequence[int | None], dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """Raise ShapeError unless `x`, called by a `name` in the plural, has this shape (None: any), dtype and device."""
    if x.dim() != len(shape) or any(s is not None and s != n for s, n in zip(shape, x.shape, strict=True)):
        due = ", ".join("any" if s is None else str(s) for s in shape)
        raise ShapeError(f"{name} have shape {tuple(x.shape)}; expected ({due}).")
    if x.dtype not in dtypes:
        raise ShapeError(f"{name} came as {x.dtype}; expected {' or '.join(map(str, dtypes))}.")
    if x.device != device:
        raise ShapeError(f"{name} are on {x.device}; expected {device}.")

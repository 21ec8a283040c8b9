"""Float64 numbers on every device: those that have none (Apple's, some of Intel's) leave the work to the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

_HAVE_FLOAT64 = ("cpu", "cuda", "meta")


def float64_device(device: torch.device) -> torch.device:
    """Where to make float64 tensors for `device`: there, or on the CPU if it is not known to have them."""
    return device if device.type in _HAVE_FLOAT64 else torch.device("cpu")


def to_float64(x: Tensor) -> Tensor:
    """`x` in float64, on `float64_device(x.device)`."""
    return x.to(float64_device(x.device)).double()

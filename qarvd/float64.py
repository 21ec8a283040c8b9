"""Float64 and 8-bit floats on every device: what has none (Apple's, some of Intel's) leaves the work to the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

_HAVE_THEM = ("cpu", "cuda", "meta")


def float64_device(device: torch.device) -> torch.device:
    """Where to make float64 tensors for `device`: there, or on the CPU if it is not known to have them."""
    return device if device.type in _HAVE_THEM else torch.device("cpu")


def to_float64(x: Tensor) -> Tensor:
    """`x` in float64, on `float64_device(x.device)`."""
    return x.to(float64_device(x.device)).double()


def to_float8(x: Tensor) -> Tensor:
    """`x` in 8-bit floats (e4m3), on `float64_device(x.device)`."""
    return x.to(float64_device(x.device)).to(torch.float8_e4m3fn)


def has_float8(device: torch.device) -> bool:
    """Whether tensors of 8-bit floats are known to be possible on `device`."""
    return device.type in _HAVE_THEM


def from_float8(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; 8-bit floats become float32 on one that is not known to have them."""
    return x.to(device) if x.dtype != torch.float8_e4m3fn or has_float8(device) else x.float().to(device)

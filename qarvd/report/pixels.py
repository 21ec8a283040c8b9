"""Float images become bytes, larger and coloured: what every picture and video shares."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SettingError


def to_bytes(pixels: Tensor) -> Tensor:
    """Floats in 0..1, of any shape -> uint8 of the same shape; what lies outside is clamped and NaN is black."""
    if not pixels.is_floating_point():
        raise SettingError(f"The pixels are {pixels.dtype}; pass floats in 0..1.")
    levels = pixels.detach().float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1) * 255
    return levels.round().to("cpu", torch.uint8)


def enlarge(pixels: Tensor, scale: int, axis: int = 0) -> Tensor:
    """Repeat each pixel `scale` times along `axis` (height) and the next one (width)."""
    return pixels.repeat_interleave(scale, axis).repeat_interleave(scale, axis + 1)


def to_rgb(grey: Tensor) -> Tensor:
    """Grey [..., height, width] -> [..., height, width, 3]."""
    return grey.unsqueeze(-1).expand(*grey.shape, 3)

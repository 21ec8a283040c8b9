"""Round to nearest, with the clip of each row and range that leaves the least squared error in the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.codecs import Codec
from ...ops.split import ChannelSplit
from ...ops.weight import LEAST_RATIO, QuantizedWeight

CLIPS = tuple(1 - 0.02 * i for i in range(26))
"""Fractions of a row's largest magnitude that are tried as its clip, 1 down to 0.5."""
LEAST_SCALE = 1e-12


def ROUND(weight: Tensor, split: ChannelSplit, codec: Codec) -> QuantizedWeight:
    """Quantize `weight` [out, in] symmetrically."""
    columns = weight.detach().float()[:, split.order.to(weight.device)]
    outlier, normal = columns[:, : split.n_outlier], columns[:, split.n_outlier :]
    normal_scale = best_scale(normal, codec)
    outlier_scale = best_scale(outlier, codec) if split.n_outlier else normal_scale
    scale = torch.stack([outlier_scale, torch.maximum(normal_scale, outlier_scale * LEAST_RATIO)], dim=1)
    codes = torch.cat([to_codes(outlier, scale[:, :1], codec), to_codes(normal, scale[:, 1:], codec)], dim=1)
    return QuantizedWeight(codec, split, codec.pack(codes), scale)


def best_scale(rows: Tensor, codec: Codec) -> Tensor:
    """The step of each row of `rows` [out, n] that rounds it with the least squared error: [out]."""
    full = (rows.abs().amax(1) / codec.high).clamp_min(LEAST_SCALE)
    least = torch.full_like(full, torch.inf)
    best = full
    for clip in CLIPS:
        scale = full * clip
        error = (to_codes(rows, scale[:, None], codec) * scale[:, None] - rows).square().sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def to_codes(rows: Tensor, scale: Tensor, codec: Codec) -> Tensor:
    """Nearest int8 codes within the codec's range."""
    return (rows / scale).round().clamp(codec.low, codec.high).to(torch.int8)

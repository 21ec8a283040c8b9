"""The published outlier detector: input channels whose weight columns are far above the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..ops.split import ALIGNMENT, ChannelSplit

Z_THRESHOLD = 3.5
LEAST_RATIO = 1.2
"""A channel is an outlier above median + 3.5 MAD / 0.6745, and above 1.2 medians (Q-ARVD, released code)."""


@dataclass(frozen=True)
class Detection:
    """Outlier channels (ascending) of one layer, or of linears that share an input."""

    channels: tuple[int, ...]
    threshold: float
    """The column norm above which a channel is an outlier; 0 where all norms are alike."""

    @property
    def count(self) -> int:
        return len(self.channels)


def column_norms(*weights: Tensor) -> Tensor:
    """L2 norm of each input channel over the rows of all `weights` [out, in] that read it: float32 [in]."""
    total, *others = (w.detach().float().norm(dim=0).square() for w in weights)
    if not others:
        return weights[0].detach().float().norm(dim=0)
    return sum(others, total).sqrt()


def detect(norms: Tensor, align: int = ALIGNMENT, most: int | None = None) -> Detection:
    """Detect outliers from column norms [in]; their number is rounded up to a multiple of `align`.

    `most` caps the number; the published cap is half of the channels.
    """
    values = norms.float().cpu().numpy()
    if not np.isfinite(values).all():
        return Detection((), 0.0)  # norms that overflow tell no channel from another
    median = float(np.median(values))
    spread = np.median(np.abs(values - median))
    if spread < 1e-8:
        return Detection((), 0.0)
    score = 0.6745 * (values - median) / spread
    count = int(((score > Z_THRESHOLD) & (values > LEAST_RATIO * median)).sum())
    count = min(-(-count // align) * align, len(values) // 2 if most is None else most)
    threshold = max(median + Z_THRESHOLD * spread / 0.6745, LEAST_RATIO * median)
    largest = norms.cpu().argsort()[len(values) - count :]
    return Detection(tuple(sorted(largest.tolist())), float(threshold))


def published_split(*weights: Tensor, unit: int = ALIGNMENT) -> ChannelSplit:
    """The published outliers of linears that read one input, a multiple of `unit`, as kernels and groups need it."""
    norms = column_norms(*weights)
    return ChannelSplit(len(norms), detect(norms, unit, most=len(norms) // (2 * unit) * unit).channels)

"""The grid of a quantized weight: a step and a zero point for each row and range, and how they are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.codecs import Codec
from ..ops.split import ChannelSplit
from ..ops.weight import LEAST_RATIO, QuantizedWeight

CLIPS = tuple(1 - 0.02 * i for i in range(26))
"""Fractions of a row's range that are tried as its clip, 1 down to 0.5."""
LEAST_SCALE = 1e-12


@dataclass(frozen=True)
class Grid:
    """Codes from `low` to `high` stand for scale * (code - zero); column 0 for outlier, 1 for normal channels."""

    low: int
    high: int
    scale: Tensor
    """[rows, 2], floating point."""
    zero: Tensor | None
    """[rows, 2], whole numbers of the dtype of `scale`; None for a symmetric grid."""

    def per_column(self, n_outlier: int, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each weight, [rows, columns] in kernel column order."""
        part = (torch.arange(columns, device=self.scale.device) >= n_outlier).long()
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero
        return self.scale[:, part], zero[:, part]


def full_range(codec: Codec) -> tuple[int, int]:
    """Codes of an asymmetric grid: all of 4 bits; 8 bits keep the symmetric range, whose step hardly differs."""
    return (-8, 7) if codec.bits == 4 else (codec.low, codec.high)


def fit_grid(
    columns: Tensor,
    n_outlier: int,
    codec: Codec,
    symmetric: bool,
    gram: Tensor | None = None,
    clips: Sequence[float] = CLIPS,
) -> Grid:
    """The grid whose clip, of each row and range, leaves the least squared error after rounding to nearest.

    `columns` [rows, in] in kernel order. With `gram` [in, in], in the same order, it is the error of the output.
    """
    parts = [
        _fit(columns[:, span], codec, symmetric, None if gram is None else gram[span, span], clips)
        for span in (slice(0, n_outlier), slice(n_outlier, None))
    ]
    if not n_outlier:
        parts[0] = parts[1]
    low, high = (codec.low, codec.high) if symmetric else full_range(codec)
    scale = torch.stack([scale for scale, _ in parts], dim=1)
    zero = None if symmetric else torch.stack([zero for _, zero in parts], dim=1)
    return floored(Grid(low, high, scale, zero))


def floored(grid: Grid) -> Grid:
    """The same with the normal step at least 1/256 of the outlier step (docs/format.md)."""
    outlier, normal = grid.scale.clamp_min(LEAST_SCALE).unbind(1)
    scale = torch.stack([outlier, torch.maximum(normal, outlier * LEAST_RATIO)], dim=1)
    return Grid(grid.low, grid.high, scale, grid.zero)


def _fit(
    rows: Tensor, codec: Codec, symmetric: bool, gram: Tensor | None, clips: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Scale and zero point [rows] of one range."""
    least = rows.new_full((len(rows),), torch.inf)
    best_scale, best_zero = torch.full_like(least, LEAST_SCALE), torch.zeros_like(least)
    if not rows.shape[1]:
        return best_scale, best_zero
    if symmetric:
        low, high = codec.low, codec.high
        top = rows.abs().amax(1)
        bottom = -top
    else:
        low, high = full_range(codec)
        top, bottom = rows.amax(1).clamp_min(0), rows.amin(1).clamp_max(0)
    for clip in clips:
        scale = ((top - bottom) * (clip / (high - low))).clamp_min(LEAST_SCALE)
        zero = torch.zeros_like(scale) if symmetric else (low - clip * bottom / scale).round().clamp(low, high)
        codes = to_codes(rows, scale[:, None], zero[:, None], low, high)
        error = row_error(scale[:, None] * (codes - zero[:, None]) - rows, gram)
        better = error < least
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        least = torch.minimum(error, least)
    return best_scale, best_zero


def row_error(difference: Tensor, gram: Tensor | None) -> Tensor:
    """Squared error of each row: d d^T, or d gram d^T: [rows]."""
    return ((difference if gram is None else difference @ gram) * difference).sum(1)


def to_codes(rows: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """Nearest codes within the range, in the dtype of `rows`."""
    return (rows / scale + zero).round().clamp(low, high)


def assemble(codes: Tensor, grid: Grid, split: ChannelSplit, codec: Codec) -> QuantizedWeight:
    """Pack codes [out, in] in kernel column order with their grid."""
    zero = None if grid.zero is None else grid.zero.to(torch.int8)
    return QuantizedWeight(codec, split, codec.pack(codes.to(torch.int8)), grid.scale.float(), zero)

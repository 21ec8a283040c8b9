"""How grids are chosen for weights that are rounded to nearest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.codecs import Codec
from .grid import LEAST_SCALE, Grid, floored, row_error, to_codes
from .groups import fit_groups

CLIPS = tuple(1 - 0.02 * i for i in range(26))
"""Fractions of a row's range that are tried as its clip, 1 down to 0.5."""


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

    `columns` [rows, in] in kernel order. With `gram` [in, in], in the same order, it is the error of the output. With
    scales of groups there are no clips: they are fitted to codes, and of `gram` only its diagonal counts.
    """
    if codec.group:
        return fit_groups(columns, n_outlier, codec, None if gram is None else gram.diagonal())
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

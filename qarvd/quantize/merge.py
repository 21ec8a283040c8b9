"""Quantize a weight again after something small, such as a LoRA, was added to it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..ops.codecs import Codec
from ..ops.weight import QuantizedWeight
from .fit import fit_grid, full_range
from .grid import Grid, Groups, floored

CLIPS = (1.0, 0.9, 0.8, 0.7)
"""Fewer than for a file: a merge is waited for."""
DITHERS = (0.5, 0.65, 0.8, 1.0)
"""Widths of the random offset before rounding, in steps; 1 is stochastic rounding."""
NOISE = 10**0.04 / 12
"""Most squared rounding error, in squared steps, that dither may bring a row to: 0.4 dB above that of rounding."""
UNCHANGED = 1e-3
"""This near to a code, in steps, a weight is taken as not changed; and so is a grid whose mean squared error, in
squared steps, is no more above another's."""


def grid_of(weight: QuantizedWeight) -> Grid:
    """The grid of a quantized weight."""
    codec, scale, zero = weight.codec, weight.scale, weight.zero
    if weight.group_scale is not None:
        table = torch.tensor(codec.table).to(scale) if weight.table is None else weight.table
        return Grid(codec.low, codec.high, scale, None, Groups(codec.group, weight.group_scale.float(), table))
    if zero is None:
        return Grid(codec.low, codec.high, scale, None)
    return Grid(*full_range(codec), scale, zero.to(scale.dtype))


def requantize(columns: Tensor, n_outlier: int, codec: Codec, old: Grid, seed: int | None) -> tuple[Tensor, Grid]:
    """Codes, of the dtype of `columns`, and the grid of `columns` [out, in], which lay near codes of the `old` grid.

    Each row and range keeps its old grid where no other suits it better, so that what was not changed stays as it was.
    """
    grid = _better(columns, n_outlier, old, fit_grid(columns, n_outlier, codec, old.zero is None, clips=CLIPS))
    return round_near(columns, n_outlier, grid, seed), grid


def round_near(columns: Tensor, n_outlier: int, grid: Grid, seed: int | None) -> Tensor:
    """Codes on `grid` of `columns` [out, in], which may lie near codes of it.

    Changes of less than half a step would vanish if they were rounded to nearest, all of them alike; so where there is
    a seed, columns are rounded at random as far as that leaves the error below `NOISE`. Stochastic rounding throughout,
    as is done with floating-point formats, would double the error of larger changes, which do not need it.
    """
    scale, zero = grid.per_column(n_outlier, columns.shape[1])
    place = columns / scale + zero
    codes = grid.all_nearest(place)
    if seed:
        below, above = grid.around(place)
        step = (above - below).clamp_min_(1)
        share = (place - below) / step
        off = share - share.floor()
        off = torch.minimum(off, 1 - off)  # 0 to a half
        width = _dither(off, step, n_outlier)
        generator = torch.Generator(place.device).manual_seed(seed % 2**63)
        chance = torch.rand(place.shape, generator=generator, dtype=place.dtype, device=place.device)
        drawn = below + step * (share + (chance - 0.5) * width).round_().clamp_(0, 1)
        codes = torch.where(off < UNCHANGED, codes, drawn)
    return codes


def _better(columns: Tensor, n_outlier: int, old: Grid, new: Grid) -> Grid:
    """Of each row and range, the grid of less error; the old one where they hardly differ."""
    gain = _per_range(_error(columns, n_outlier, old) - _error(columns, n_outlier, new), n_outlier)
    keep = gain <= UNCHANGED * old.scale.square()
    if not n_outlier:
        keep = keep[:, 1:].expand(-1, 2)  # both columns tell of the one range
    zero, groups = None, None
    if old.zero is not None and new.zero is not None:
        zero = torch.where(keep, old.zero, new.zero)
    if old.groups is not None and new.groups is not None:
        size = old.groups.size
        part = (torch.arange(0, columns.shape[1], size, device=keep.device) >= n_outlier).long()
        groups = replace(old.groups, scale=torch.where(keep[:, part], old.groups.scale, new.groups.scale))
    return floored(replace(new, scale=torch.where(keep, old.scale, new.scale), zero=zero, groups=groups))


def _error(columns: Tensor, n_outlier: int, grid: Grid) -> Tensor:
    """Squared error of every weight, rounded to nearest."""
    scale, zero = grid.per_column(n_outlier, columns.shape[1])
    return (scale * (grid.all_nearest(columns / scale + zero) - zero) - columns).square_()


def _dither(off: Tensor, step: Tensor, n_outlier: int) -> Tensor:
    """Width of the random offset for each weight, [out, in], that is `off` of a `step` from the nearest code."""
    power = step.square()
    most = NOISE * _per_range(power, n_outlier)
    width = torch.zeros_like(most)
    for tried in DITHERS:
        other = ((off - 0.5) / tried + 0.5).clamp_(min=0)  # the chance to get the code on the other side
        noise = off.square() + other * (1 - 2 * off)
        width = torch.where(_per_range(noise * power, n_outlier) <= most, tried, width)
    part = (torch.arange(off.shape[1], device=off.device) >= n_outlier).long()
    return width[:, part]


def _per_range(values: Tensor, n_outlier: int) -> Tensor:
    """Means of the two ranges of `values` [out, in]: [out, 2]; NaN where a range is empty."""
    return torch.stack([values[:, :n_outlier].mean(1), values[:, n_outlier:].mean(1)], dim=1)

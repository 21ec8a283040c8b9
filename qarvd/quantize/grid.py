"""The grid of a quantized weight: a step and a zero point for each row and range, and how they are chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..float64 import from_float8, to_float8
from ..ops.codecs import Codec
from ..ops.split import ChannelSplit
from ..ops.weight import LEAST_RATIO, QuantizedWeight

LEAST_SCALE = 1e-12


@dataclass(frozen=True)
class Groups:
    """What the codes of a codec with groups may be: its table times each group's scale, rounded."""

    size: int
    scale: Tensor
    """Of each group of columns, relative to its row's, [rows, in / size]; values that the file can hold."""
    table: Tensor
    """[2^bits], ascending, of the dtype of `scale`."""

    @cached_property
    def levels(self) -> Tensor:
        """Whole numbers [rows, in / size, 2^bits], ascending."""
        return levels_of(self.table, self.scale)

    @cached_property
    def between(self) -> Tensor:
        """The middle of each two levels, group by group, [in / size, rows, 2^bits - 1]."""
        return ((self.levels[..., 1:] + self.levels[..., :-1]) / 2).transpose(0, 1).contiguous()


@dataclass(frozen=True)
class Grid:
    """Codes from `low` to `high` stand for scale * (code - zero); column 0 for outlier, 1 for normal channels."""

    low: int
    high: int
    scale: Tensor
    """[rows, 2], floating point."""
    zero: Tensor | None
    """[rows, 2], whole numbers of the dtype of `scale`; None for a symmetric grid."""
    groups: Groups | None = None
    """Which codes there are; None: all whole numbers from `low` to `high`."""

    def per_column(self, n_outlier: int, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each weight, [rows, columns] in kernel column order."""
        part = (torch.arange(columns, device=self.scale.device) >= n_outlier).long()
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero
        return self.scale[:, part], zero[:, part]

    def nearest(self, place: Tensor, column: int) -> Tensor:
        """The code nearest to `place` [rows], a weight of this column over its scale, plus its zero point."""
        if self.groups is None:
            return place.round().clamp(self.low, self.high)
        group = column // self.groups.size
        found = torch.searchsorted(self.groups.between[group], place[:, None])
        return self.groups.levels[:, group].gather(1, found)[:, 0]

    def two_nearest(self, place: Tensor, column: int) -> tuple[Tensor, Tensor]:
        """The code nearest to `place` [rows, some] and the next on its other side; the same again beyond the last."""
        if self.groups is None:
            first = place.round().clamp(self.low, self.high)
            return first, torch.where(place > first, first + 1, first - 1).clamp(self.low, self.high)
        group = column // self.groups.size
        levels = self.groups.levels[:, group]
        found = torch.searchsorted(self.groups.between[group], place.contiguous())
        first = levels.gather(1, found)
        other = torch.where(place > first, found + 1, found - 1).clamp_(0, levels.shape[1] - 1)
        return first, levels.gather(1, other)

    def of_rows(self, rows: Tensor) -> Grid:
        """The grid of some rows, by their numbers."""
        zero = None if self.zero is None else self.zero[rows]
        groups = None if self.groups is None else replace(self.groups, scale=self.groups.scale[rows])
        return replace(self, scale=self.scale[rows], zero=zero, groups=groups)

    def all_nearest(self, place: Tensor) -> Tensor:
        """The same of all columns, `place` [rows, in]."""
        if self.groups is None:
            return place.round().clamp(self.low, self.high)
        by_group = place.unflatten(1, (-1, self.groups.size)).transpose(0, 1).contiguous()
        found = torch.searchsorted(self.groups.between, by_group).transpose(0, 1)
        return self.groups.levels.gather(2, found).flatten(1)

    def around(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """The codes below and above `place` [rows, in]; the two lowest or highest ones beyond those."""
        if self.groups is None:
            below = place.floor().clamp(self.low, self.high - 1)
            return below, below + 1
        levels = self.groups.levels
        above = torch.searchsorted(levels, place.unflatten(1, (-1, self.groups.size)).contiguous(), right=True)
        above = above.clamp_(1, levels.shape[-1] - 1)
        return levels.gather(2, above - 1).flatten(1), levels.gather(2, above).flatten(1)


def levels_of(table: Tensor, scale: Tensor) -> Tensor:
    """What a table's entries stand for in groups of these scales [...], ascending: [..., len(table)]."""
    return (table * scale.unsqueeze(-1)).round_().clamp_(-127, 127)


def floored(grid: Grid) -> Grid:
    """The same with the normal step at least 1/256 of the outlier step (docs/format.md)."""
    outlier, normal = grid.scale.clamp_min(LEAST_SCALE).unbind(1)
    scale = torch.stack([outlier, torch.maximum(normal, outlier * LEAST_RATIO)], dim=1)
    return replace(grid, scale=scale)


def row_error(difference: Tensor, gram: Tensor | None) -> Tensor:
    """Squared error of each row: d d^T, or d gram d^T: [rows]."""
    return ((difference if gram is None else difference @ gram) * difference).sum(1)


def to_codes(rows: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """Nearest codes within the range, in the dtype of `rows`."""
    return (rows / scale + zero).round().clamp(low, high)


def assemble(codes: Tensor, grid: Grid, split: ChannelSplit, codec: Codec) -> QuantizedWeight:
    """Pack codes [out, in] in kernel column order with their grid."""
    zero, groups = None if grid.zero is None else grid.zero.to(torch.int8), grid.groups
    if groups is None:
        return QuantizedWeight(codec, split, codec.pack(codes.to(torch.int8)), grid.scale.float(), zero)
    places = torch.searchsorted(groups.levels, codes.unflatten(1, (-1, groups.size)).contiguous()).flatten(1)
    table = groups.table.float() if codec.has_table else None
    narrow = to_float8(groups.scale)  # which loses something of a file that was made by others
    lossless = torch.equal(narrow.float().to(groups.scale), groups.scale)
    relative = from_float8(narrow, codes.device) if lossless else groups.scale.float()
    return QuantizedWeight(codec, split, codec.pack(places.to(torch.int8)), grid.scale.float(), None, relative, table)

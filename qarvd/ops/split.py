"""A dual scale is a permutation: outlier input channels first, then the others; each range may be rotated by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from ..recipe import ROTATIONS
from .hadamard import rotate

ALIGNMENT = 32
"""Both ranges of a layer are multiples of this many channels, so that no kernel has to pad."""


class Columns(NamedTuple):
    """How tokens' input channels become the columns that kernels multiply: what ops are given of a split."""

    order: Tensor | None
    """int [channels], the input channel of each column before rotation; None if they stay as they are.

    int32 on CUDA devices, as kernels read it, int64 elsewhere, as torch indexes.
    """
    n_outlier: int
    """How many columns are the outlier range, which comes first."""
    rotation: int
    """Each range is rotated in blocks of this width, or of the widest power of two that divides the range; 0: not."""

    def width(self, channels: int) -> int:
        """Width of the blocks in which a range of so many channels is rotated; 1 if it is not."""
        return gcd(channels, self.rotation) if self.rotation else 1

    def lay_out(self, channels: int, device: torch.device) -> None:
        """Make what `to_columns` of tokens would make at its first call."""
        for size in (self.n_outlier, channels - self.n_outlier):
            rotate(torch.zeros(1, size, device=device), self.width(size))

    def to_ranges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outlier range and the normal one of `x` [..., channels] as kernels multiply it."""
        return self._rotated(self._ordered(x))

    def to_columns(self, x: Tensor) -> Tensor:
        """`x` [..., channels] as kernels multiply it."""
        return self._joined(self._ordered(x))

    def to_logical(self, columns: Tensor) -> Tensor:
        """The inverse of `to_columns`."""
        columns = self._joined(columns)
        if self.order is None:
            return columns
        logical = torch.empty_like(columns)
        logical[..., self.order.long()] = columns
        return logical

    def _ordered(self, x: Tensor) -> Tensor:
        # Gathering is several times faster than indexing on a CPU.
        return x if self.order is None else x.gather(-1, self.order.long().expand(x.shape))

    def _rotated(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        outlier, normal = columns[..., : self.n_outlier], columns[..., self.n_outlier :]
        return rotate(outlier, self.width(self.n_outlier)), rotate(normal, self.width(normal.shape[-1]))

    def _joined(self, columns: Tensor) -> Tensor:
        """`_rotated`, both ranges together."""
        if not self.rotation:
            return columns
        outlier, normal = self._rotated(columns)
        return torch.cat([outlier, normal], dim=-1) if self.n_outlier else normal


@dataclass(frozen=True)
class ChannelSplit:
    """Which of a layer's `channels` input channels are `outliers` (ascending); at most half of them.

    With a `rotation`, each of the two ranges is rotated by Hadamard matrices of that width, or of the widest power of
    two that divides the range.
    """

    channels: int
    outliers: tuple[int, ...] = ()
    rotation: int = 0

    def __post_init__(self) -> None:
        chosen = self.outliers
        if self.channels % ALIGNMENT or len(chosen) % ALIGNMENT or 2 * len(chosen) > self.channels:
            raise ShapeError(
                f"{len(chosen)} outliers of {self.channels} input channels: both must be multiples of {ALIGNMENT}, "
                "and at most half of the channels can be outliers."
            )
        if any(a >= b for a, b in itertools.pairwise(chosen)) or not set(chosen) <= set(range(self.channels)):
            raise ShapeError(f"Outlier channels must ascend and lie within 0 to {self.channels - 1}: {chosen}.")
        if self.rotation not in ROTATIONS:
            raise ShapeError(
                f"Channels can't be rotated in blocks of {self.rotation}; widths are {', '.join(map(str, ROTATIONS))}."
            )

    @classmethod
    def of(cls, channels: int, outliers: Iterable[int], rotation: int = 0) -> ChannelSplit:
        """A split from outliers in any order."""
        return cls(channels, tuple(sorted(outliers)), rotation)

    @property
    def n_outlier(self) -> int:
        return len(self.outliers)

    def order(self, device: torch.device) -> Tensor | None:
        """See `Columns.order`."""
        if not self.outliers:
            return None
        normal = torch.ones(self.channels, dtype=torch.bool)
        normal[list(self.outliers)] = False
        order = torch.cat([torch.tensor(self.outliers, dtype=torch.int64), normal.nonzero()[:, 0]])
        return order.to(device, torch.int32 if device.type == "cuda" else torch.int64)

    def columns(self, device: torch.device) -> Columns:
        """What ops on `device` are given of this split."""
        return Columns(self.order(device), self.n_outlier, self.rotation)

    def to_columns(self, x: Tensor) -> Tensor:
        """`x` [..., channels] as kernels multiply it."""
        return self.columns(x.device).to_columns(x)

    def to_logical(self, columns: Tensor) -> Tensor:
        """The inverse of `to_columns`."""
        return self.columns(columns.device).to_logical(columns)

    def square_to_columns(self, matrix: Tensor) -> Tensor:
        """`matrix` [channels, channels] with both axes as kernels multiply them."""
        return self.to_columns(self.to_columns(matrix).mT).mT.contiguous()

    def square_to_logical(self, matrix: Tensor) -> Tensor:
        """The inverse of `square_to_columns`."""
        return self.to_logical(self.to_logical(matrix).mT).mT.contiguous()

    def ranges(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the outlier range and of the normal one of `columns` [..., channels]."""
        return columns[..., : self.n_outlier], columns[..., self.n_outlier :]

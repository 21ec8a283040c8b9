"""A dual scale is a permutation: outlier input channels first, then the others, both in ascending order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ShapeError

ALIGNMENT = 32
"""Both ranges of a layer are multiples of this many channels, so that no kernel has to pad."""


@dataclass(frozen=True)
class ChannelSplit:
    """Which of a layer's `channels` input channels are `outliers` (ascending); at most half of them."""

    channels: int
    outliers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        chosen = self.outliers
        if self.channels % ALIGNMENT or len(chosen) % ALIGNMENT or 2 * len(chosen) > self.channels:
            raise ShapeError(
                f"{len(chosen)} outliers of {self.channels} input channels: both must be multiples of {ALIGNMENT}, "
                "and at most half of the channels can be outliers."
            )
        if any(a >= b for a, b in itertools.pairwise(chosen)) or not set(chosen) <= set(range(self.channels)):
            raise ShapeError(f"Outlier channels must ascend and lie within 0 to {self.channels - 1}: {chosen}.")

    @classmethod
    def of(cls, channels: int, outliers: Iterable[int]) -> ChannelSplit:
        """A split from outliers in any order."""
        return cls(channels, tuple(sorted(outliers)))

    @property
    def n_outlier(self) -> int:
        return len(self.outliers)

    def order(self, device: torch.device) -> Tensor | None:
        """The input channel of each column in the kernel's order, [channels]; None if columns stay as they are.

        int32 on CUDA devices, as kernels read it, int64 elsewhere, as torch indexes.
        """
        if not self.outliers:
            return None
        normal = torch.ones(self.channels, dtype=torch.bool)
        normal[list(self.outliers)] = False
        order = torch.cat([torch.tensor(self.outliers, dtype=torch.int64), normal.nonzero()[:, 0]])
        return order.to(device, torch.int32 if device.type == "cuda" else torch.int64)

    def to_columns(self, x: Tensor) -> Tensor:
        """`x` [..., channels] in the kernel's column order."""
        return to_columns(x, self.order(x.device))

    def to_logical(self, columns: Tensor) -> Tensor:
        """The inverse of `to_columns`."""
        return to_logical(columns, self.order(columns.device))

    def square_to_columns(self, matrix: Tensor) -> Tensor:
        """`matrix` [channels, channels] with both axes in the kernel's order."""
        return self.to_columns(self.to_columns(matrix).mT).mT.contiguous()

    def square_to_logical(self, matrix: Tensor) -> Tensor:
        """The inverse of `square_to_columns`."""
        return self.to_logical(self.to_logical(matrix).mT).mT.contiguous()

    def ranges(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the outlier range and of the normal one of `columns` [..., channels], in the kernel's order."""
        return columns[..., : self.n_outlier], columns[..., self.n_outlier :]


def to_columns(x: Tensor, order: Tensor | None) -> Tensor:
    """`x` [..., channels] in the kernel's column order; `order` as `ChannelSplit.order` gives it."""
    if order is None:
        return x
    return x.gather(-1, order.long().expand(x.shape))  # several times faster than indexing on a CPU


def to_logical(columns: Tensor, order: Tensor | None) -> Tensor:
    """The inverse of `to_columns`."""
    if order is None:
        return columns
    logical = torch.empty_like(columns)
    logical[..., order.long()] = columns
    return logical

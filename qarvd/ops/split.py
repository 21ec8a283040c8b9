"""A dual scale is a permutation: outlier input channels first, then the others, both in ascending order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def order(self) -> Tensor:
        """The input channel of each column in the kernel's order, int64 [channels], on the CPU."""
        normal = torch.ones(self.channels, dtype=torch.bool)
        normal[list(self.outliers)] = False
        return torch.cat([torch.tensor(self.outliers, dtype=torch.int64), normal.nonzero()[:, 0]])

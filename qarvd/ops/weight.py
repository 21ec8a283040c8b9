"""A quantized weight: what one linear stores, in the layout of the kernels and of the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ShapeError
from .codecs import Codec
from .split import ChannelSplit

LEAST_RATIO = 1 / 256
"""The normal scale is at least this much of the outlier scale, so that one near-zero row can't ruin the guard."""


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes in the kernel's column order, with a scale for each of the two ranges.

    `codes` are the codec's bytes of int8 [out, in]; `scale` is float32 [out, 2] (outlier, normal); `zero`, where the
    weight is asymmetric, int8 [out, 2]: a weight is scale * (code - zero).
    """

    codec: Codec
    split: ChannelSplit
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None

    def __post_init__(self) -> None:
        out = self.codes.shape[0]
        expected = (out, self.split.channels * self.codec.bits // 8)
        pairs = (self.scale, *(() if self.zero is None else (self.zero,)))
        if tuple(self.codes.shape) != expected or any(tuple(t.shape) != (out, 2) for t in pairs):
            raise ShapeError(
                f"Codes of shape {tuple(self.codes.shape)} and scales of shape {tuple(self.scale.shape)} do not fit "
                f"{self.split.channels} input channels at {self.codec.bits} bits; expected {expected} and {(out, 2)}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Logical [out, in]."""
        return self.codes.shape[0], self.split.channels

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored, the list of outliers included."""
        zero = 0 if self.zero is None else self.zero.nbytes
        return self.codes.nbytes + self.scale.nbytes + zero + 4 * self.split.n_outlier

    @cached_property
    def guard(self) -> float:
        """Least ratio of normal to outlier activation scale that keeps the accumulator below 2^30 at the fold."""
        if not self.split.n_outlier:
            return 0.0
        # 128: the 4-bit code -8 counts as -128 where kernels read 16 times the code.
        steepest = (self.scale[:, 0] / self.scale[:, 1]).max().item()
        return self.split.n_outlier * 127 * 128 * steepest / 2**30

    def dequantize(self) -> Tensor:
        """Float32 [out, in] in the logical column order."""
        columns = self.columns()
        logical = torch.empty_like(columns)
        logical[:, self.split.order.to(columns.device)] = columns
        return logical

    def columns(self) -> Tensor:
        """Float32 [out, in] in the kernel's column order."""
        codes = self.codec.unpack(self.codes).float()
        n = self.split.n_outlier
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero.float()
        return torch.cat(
            [
                self.scale[:, :1] * (codes[:, :n] - zero[:, :1]),
                self.scale[:, 1:] * (codes[:, n:] - zero[:, 1:]),
            ],
            dim=1,
        )

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), zero=zero)

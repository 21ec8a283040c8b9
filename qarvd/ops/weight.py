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
        return guard_of(self.scale, self.split.n_outlier)

    def dequantize(self) -> Tensor:
        """Float32 [out, in] in the logical column order."""
        n = self.split.n_outlier
        order = self.split.order.to(self.codes.device) if n else None
        return restore(self.codec.unpack(self.codes), self.scale, self.zero, order, n)

    def columns(self) -> Tensor:
        """Float32 [out, in] in the kernel's column order."""
        return restore(self.codec.unpack(self.codes), self.scale, self.zero, None, self.split.n_outlier)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), zero=zero)


def guard_of(scale: Tensor, n_outlier: int) -> float:
    """`QuantizedWeight.guard` of a weight with these scales, float32 [out, 2]."""
    if not n_outlier:
        return 0.0
    # 128: the 4-bit code -8 counts as -128 where kernels read 16 times the code.
    return n_outlier * 127 * 128 * (scale[:, 0] / scale[:, 1]).max().item() / 2**30


def restore(codes: Tensor, scale: Tensor, zero: Tensor | None, order: Tensor | None, n_outlier: int) -> Tensor:
    """Float32 [out, in] in the logical column order, from unpacked `codes` [out, in] in the kernel's.

    `scale` and `zero` as in QuantizedWeight; `order` [in] is the logical column of each kernel column (None: the same).
    """
    codes = codes.float()
    zero = torch.zeros_like(scale) if zero is None else zero.float()
    columns = torch.cat(
        [
            scale[:, :1] * (codes[:, :n_outlier] - zero[:, :1]),
            scale[:, 1:] * (codes[:, n_outlier:] - zero[:, 1:]),
        ],
        dim=1,
    )
    if order is None:
        return columns
    logical = torch.empty_like(columns)
    logical[:, order.long()] = columns
    return logical

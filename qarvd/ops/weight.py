"""A quantized weight: what one linear stores, in the layout of the kernels and of the file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from .codecs import Codec
from .split import ChannelSplit, to_logical
from .values import PackedWeight, Prepared

LEAST_RATIO = 1 / 256
"""The normal scale is at least this much of the outlier scale, so that one near-zero row can't ruin the guard."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes in the kernel's column order, with a scale for each of the two ranges.

    `codes` are the codec's bytes of int8 [out, in]; `scale` is float32 [out, 2] (outlier, normal); `zero`, if the
    weight is asymmetric, int8 [out, 2]: a weight is scale * (code - zero). `order` and `guard` follow from split and
    scale: to change those, make a new weight rather than `replace` them. Raises ShapeError for what does not fit.
    """

    codec: Codec
    split: ChannelSplit
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    order: Tensor | None = field(default=None, repr=False)
    """`split.order` where the codes are; made if not given."""
    guard: float = field(default=math.nan, repr=False)
    """Least ratio of normal to outlier activation scale that keeps the accumulator below 2^30 at the fold; computed if
    not given."""
    prepared: Prepared | None = field(default=None, init=False, repr=False)
    """How it runs, from the first call on; `linear.prepare` sets it."""

    def __post_init__(self) -> None:
        out = self.codes.shape[0]
        expected = (out, self.split.channels * self.codec.bits // 8)
        pairs = (self.scale, *(() if self.zero is None else (self.zero,)))
        if tuple(self.codes.shape) != expected or any(tuple(t.shape) != (out, 2) for t in pairs):
            raise ShapeError(
                f"Codes of shape {tuple(self.codes.shape)} and scales of shape {tuple(self.scale.shape)} do not fit "
                f"{self.split.channels} input channels at {self.codec.bits} bits; expected {expected} and {(out, 2)}."
            )
        if self.split.n_outlier and self.order is None:
            object.__setattr__(self, "order", self.split.order(self.codes.device))
        if math.isnan(self.guard):
            object.__setattr__(self, "guard", guard_of(self.scale, self.split.n_outlier))

    def __getstate__(self) -> dict[str, Any]:
        """Copies are prepared anew: what a backend laid out belongs to the tensors of this one."""
        return {**vars(self), "prepared": None}

    @property
    def shape(self) -> tuple[int, int]:
        """Logical [out, in]."""
        return self.codes.shape[0], self.split.channels

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored, the list of outliers included."""
        zero = 0 if self.zero is None else self.zero.nbytes
        return self.codes.nbytes + self.scale.nbytes + zero + 4 * self.split.n_outlier

    @property
    def packed(self) -> PackedWeight:
        """What the product reads."""
        return PackedWeight(self.codes, self.scale, self.zero, self.split.n_outlier, self.codec.bits)

    def dequantize(self) -> Tensor:
        """Float32 [out, in] in the logical column order."""
        return to_logical(self.columns(), self.order)

    def columns(self) -> Tensor:
        """Float32 [out, in] in the kernel's column order."""
        return restore(self.codec.unpack(self.codes), self.scale, self.zero, self.split.n_outlier)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        codes, scale = self.codes.to(device), self.scale.to(device)
        zero = None if self.zero is None else self.zero.to(device)
        return QuantizedWeight(self.codec, self.split, codes, scale, zero, guard=self.guard)


def guard_of(scale: Tensor, n_outlier: int) -> float:
    """`QuantizedWeight.guard` of a weight with these scales, float32 [out, 2]; NaN if they hold no numbers (meta)."""
    if not n_outlier:
        return 0.0
    if scale.is_meta:
        return math.nan
    # 128: the 4-bit code -8 counts as -128 where kernels read 16 times the code.
    return n_outlier * 127 * 128 * (scale[:, 0] / scale[:, 1]).max().item() / 2**30


def restore(codes: Tensor, scale: Tensor, zero: Tensor | None, n_outlier: int) -> Tensor:
    """Float32 [out, in] that unpacked `codes` [out, in] stand for; all in the kernel's column order.

    `scale` and `zero` as in QuantizedWeight.
    """
    codes = codes.float()
    zero = torch.zeros_like(scale) if zero is None else zero.float()
    return torch.cat(
        [
            scale[:, :1] * (codes[:, :n_outlier] - zero[:, :1]),
            scale[:, 1:] * (codes[:, n_outlier:] - zero[:, 1:]),
        ],
        dim=1,
    )


def sample_weight(codec: Codec) -> QuantizedWeight:
    """A small weight with all that a linear can have, to try with what runs or loads linears."""
    split, out = ChannelSplit.of(64, range(1, 64, 2)), 32
    codes = (torch.arange(out * 64).view(out, 64) * 7 % (2 * codec.high + 1) - codec.high).to(torch.int8)
    scale = torch.stack([torch.linspace(0.02, 0.03, out), torch.linspace(0.001, 0.002, out)], dim=1)
    zero = (torch.arange(2 * out).view(out, 2) % 5 - 2).to(torch.int8)
    return QuantizedWeight(codec, split, codec.pack(codes), scale, zero)

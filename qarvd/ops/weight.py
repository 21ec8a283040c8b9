"""A quantized weight: what one linear stores, in the layout of the kernels and of the file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..float64 import from_float8, has_float8
from .codecs import Codec
from .split import ChannelSplit, Columns
from .values import DecodedWeight, PackedWeight, Prepared

LEAST_RATIO = 1 / 256
"""The normal scale is at least this much of the outlier scale, so that one near-zero row can't ruin the guard."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes of the kernel's columns, which decode to 8 bits, with a scale for each of the two ranges.

    `codes` are the codec's bytes of [out, in]; `scale` is float32 [out, 2] (outlier, normal); `zero`, if the weight is
    asymmetric, int8 [out, 2]: a weight is scale * (decoded - zero). A codec with groups also has `group_scale`,
    float8_e4m3fn or float32 [out, in / group], and if it has tables, a `table`, float32 [2^bits]. `order` and `guard`
    follow from split and scale: to change those, make a new weight rather than `replace` them. Raises ShapeError for
    what does not fit.
    """

    codec: Codec
    split: ChannelSplit
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    group_scale: Tensor | None = None
    table: Tensor | None = None
    order: Tensor | None = field(default=None, repr=False)
    """`split.order` where the codes are; made if not given."""
    guard: float = field(default=math.nan, repr=False)
    """Least ratio of normal to outlier activation scale that keeps the accumulator below 2^30 at the fold; computed if
    not given."""
    prepared: Prepared | None = field(default=None, init=False, repr=False)
    """How it runs, from the first call on; `linear.prepare` sets it."""

    def __post_init__(self) -> None:
        out, codec, channels = self.codes.shape[0], self.codec, self.split.channels
        expected = (out, channels * codec.bits // 8)
        pairs = (self.scale, *(() if self.zero is None else (self.zero,)))
        if tuple(self.codes.shape) != expected or any(tuple(t.shape) != (out, 2) for t in pairs):
            raise ShapeError(
                f"Codes of shape {tuple(self.codes.shape)} and scales of shape {tuple(self.scale.shape)} do not fit "
                f"{channels} input channels at {codec.bits} bits; expected {expected} and {(out, 2)}."
            )
        groups = () if self.group_scale is None else tuple(self.group_scale.shape)
        if groups != ((out, channels // codec.group) if codec.group else ()) or self._straddled():
            raise ShapeError(
                f"Scales of groups have shape {groups or 'none'}, for {self.split.n_outlier} outliers of {channels} "
                f"channels stored as {codec.name}: groups of {codec.group or 'no'} columns must fill both ranges."
            )
        entries = None if self.table is None else tuple(self.table.shape)
        if entries != ((len(codec.table),) if codec.has_table else None):
            raise ShapeError(f"A table of shape {entries} does not fit weights stored as {codec.name}.")
        if codec.group and self.zero is not None:
            raise ShapeError(f"Weights stored as {codec.name} have no zero points.")
        if self.split.n_outlier and self.order is None:
            object.__setattr__(self, "order", self.split.order(self.codes.device))
        if math.isnan(self.guard):
            object.__setattr__(self, "guard", guard_of(self.scale, self.split.n_outlier))

    def _straddled(self) -> bool:
        """Whether a group of columns lies in both ranges."""
        return bool(self.codec.group) and self.split.n_outlier % self.codec.group != 0

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
        parts = (self.codes, self.stored_scale, self.zero, self.stored_group_scale, self.table)
        return sum(t.nbytes for t in parts if t is not None) + 4 * self.split.n_outlier

    @property
    def stored_scale(self) -> Tensor:
        """`scale` as files hold it: bfloat16 beside scales of groups, where that loses nothing."""
        if not self.codec.group:
            return self.scale
        narrow = self.scale.bfloat16()
        return narrow if narrow.is_meta or torch.equal(narrow.float(), self.scale) else self.scale

    @property
    def stored_group_scale(self) -> Tensor | None:
        """`group_scale` as files hold it: in 8 bits, where that loses nothing."""
        wide = self.group_scale
        if wide is None or wide.dtype != torch.float32 or wide.is_meta:
            return wide
        narrow = wide.cpu().to(torch.float8_e4m3fn)
        return narrow if torch.equal(narrow.float(), wide.cpu()) else wide

    @property
    def columns(self) -> Columns:
        """How tokens become what the codes are multiplied by."""
        return Columns(self.order, self.split.n_outlier, self.split.rotation)

    @property
    def packed(self) -> PackedWeight:
        """What decoding reads."""
        return PackedWeight(self.codes, self.group_scale, self.table, self.codec.bits)

    @property
    def decoded(self) -> DecodedWeight:
        """What the product reads, with codes decoded now."""
        return self.with_codes(self.codec.decode(self.codes, self.group_scale, self.table))

    def with_codes(self, codes: Tensor) -> DecodedWeight:
        """What the product reads, of codes that a backend has decoded to int8 [out, in]."""
        return DecodedWeight(codes, self.scale, self.zero, self.split.n_outlier)

    def dequantize(self) -> Tensor:
        """Float32 [out, in] of the logical input channels."""
        return self.columns.to_logical(self.decoded.restore())

    def ready_for(self, device: torch.device) -> QuantizedWeight:
        """The same weight where it is, of tensors that can be moved to `device`."""
        if self.group_scale is None or has_float8(device):
            return self
        return replace(self, group_scale=self.group_scale.float())

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device; scales of groups become float32 on one without 8-bit floats."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else from_float8(tensor, torch.device(device))

        codes, scale = self.codes.to(device), self.scale.to(device)
        parts = map(moved, (self.zero, self.group_scale, self.table))
        return QuantizedWeight(self.codec, self.split, codes, scale, *parts, guard=self.guard)


def guard_of(scale: Tensor, n_outlier: int) -> float:
    """`QuantizedWeight.guard` of a weight with these scales, float32 [out, 2]; NaN if they hold no numbers (meta)."""
    if not n_outlier:
        return 0.0
    if scale.is_meta:
        return math.nan
    if not len(scale):
        return 0.0
    return n_outlier * 127 * 128 * (scale[:, 0] / scale[:, 1]).max().item() / 2**30


def sample_weight(codec: Codec) -> QuantizedWeight:
    """A small weight with all that a linear can have, to try with what runs or loads linears."""
    split, out = ChannelSplit.of(192, range(1, 128, 2), rotation=64), 32
    places = torch.arange(out * 192).view(out, 192) * 7
    scale = torch.stack([torch.linspace(0.02, 0.03, out), torch.linspace(0.001, 0.002, out)], dim=1)
    if codec.group:
        scale = scale.bfloat16().float()
        codes = (places % 2**codec.bits).to(torch.int8)
        table = torch.tensor(codec.table)
        relative = torch.linspace(0.5, 1, out * 192 // codec.group).view(out, -1) * (127 / table.abs().max())
        own = table * 0.99 if codec.has_table else None
        return QuantizedWeight(codec, split, codec.pack(codes), scale, None, relative.to(torch.float8_e4m3fn), own)
    codes = (places % (2 * codec.high + 1) - codec.high).to(torch.int8)
    zero = (torch.arange(2 * out).view(out, 2) % 5 - 2).to(torch.int8)
    return QuantizedWeight(codec, split, codec.pack(codes), scale, zero)

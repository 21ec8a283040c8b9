"""What a way to store weights is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codec:
    """Codes of `bits` bits, how they lie in memory, and which 8-bit numbers they stand for.

    Plain codes are those numbers, from `low` to `high`. With a `group`, a code is the place in a table, and each group
    of so many columns of a row has a scale of its own, by which the table's entries are multiplied.
    """

    name: str
    bits: int
    stored: torch.dtype
    """dtype of the packed bytes."""
    pack: Callable[[Tensor], Tensor]
    """int8 codes [out, in] -> stored bytes [out, in * bits / 8]."""
    unpack: Callable[[Tensor], Tensor]
    """The inverse of `pack`."""
    low: int
    high: int
    group: int = 0
    """Columns that share a scale, beside the row's; 0: none do."""
    table: tuple[float, ...] = ()
    """With a `group`: what codes stand for, ascending, before they are multiplied by scales."""
    has_table: bool = False
    """Whether each weight stores a table, `table` or one of its own; else code c stands for c - 2^(bits - 1)."""
    keeps_cache: bool = False
    """Whether keys and values can be kept in it: the ops of the ring, kernels among them, read and write it."""

    def decode(self, codes: Tensor, group_scale: Tensor | None, table: Tensor | None) -> Tensor:
        """Stored bytes [out, in * bits / 8] -> the 8-bit numbers that they stand for, int8 [out, in].

        `group_scale` float8_e4m3fn or float32 [out, in / group]; `table` float32 [2^bits], if it has one.
        """
        places = self.unpack(codes)
        if group_scale is None:
            return places
        value = places.float() - 2 ** (self.bits - 1) if table is None else table[places.long()]
        scale = group_scale.float().repeat_interleave(places.shape[1] // group_scale.shape[1], dim=1)
        return (value * scale).round_().clamp_(-127, 127).to(torch.int8)

    @property
    def label(self) -> str:
        """What people call it: "8", or "4g16" for 4 bits in groups of 16."""
        return self.name.removeprefix("int")

    @property
    def format(self) -> str:
        """Name of the file format of linears stored with this codec."""
        return f"qarvd_w{self.label}a8"

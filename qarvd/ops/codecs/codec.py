"""What a bit-width is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codec:
    """Integer codes of `bits` bits from `low` to `high`, and how they lie in memory."""

    bits: int
    low: int
    high: int
    unit: int
    """What code 1 counts for in the accumulator of the linear (kernels read 4-bit codes as 16 times their value)."""
    stored: torch.dtype
    """dtype of the packed bytes."""
    pack: Callable[[Tensor], Tensor]
    """int8 codes [out, in] -> stored bytes [out, in * bits / 8]."""
    unpack: Callable[[Tensor], Tensor]
    """The inverse of `pack`."""
    keeps_cache: bool = False
    """Whether keys and values can be kept in it: the ops of the ring, kernels among them, read and write it."""

    @property
    def format(self) -> str:
        """Name of the file format of linears stored with this codec."""
        return f"qarvd_w{self.bits}a8"

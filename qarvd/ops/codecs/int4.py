"""Four bits: in each group of 32 columns, byte j holds column j in its low half and column 16 + j in its high half.

A 16-byte load then carries 32 columns, and `v << 4` and `v & 0xF0` are 16 times the two codes as signed bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from .codec import Codec

GROUP = 32


def pack(codes: Tensor) -> Tensor:
    """int8 codes [out, in] in -8..7 -> uint8 [out, in / 2]. Raises ShapeError unless 32 divides `in`."""
    if codes.shape[-1] % GROUP:
        raise ShapeError(f"4-bit codes are packed in groups of {GROUP} columns, not {codes.shape[-1]} columns.")
    low, high = codes.unflatten(-1, (-1, 2, GROUP // 2)).unbind(-2)
    return ((low & 15) | (high << 4)).flatten(-2).view(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """uint8 [out, in / 2] -> int8 codes [out, in]."""
    halves = packed.view(torch.int8).unflatten(-1, (-1, GROUP // 2))
    return torch.stack([(halves << 4) >> 4, halves >> 4], dim=-2).flatten(-3)


CODECS = (Codec("int4", bits=4, stored=torch.uint8, pack=pack, unpack=unpack, low=-7, high=7, keeps_cache=True),)

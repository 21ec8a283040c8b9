"""Six bits: codes from -31 to 31, stored with 32 added, the low four bits of a row first."""

from __future__ import annotations

import torch
from torch import Tensor

from .codec import Codec
from .planes import pack_planes, unpack_planes

WIDTHS = (4, 2)


def pack(codes: Tensor) -> Tensor:
    """int8 codes [out, in] in -32..31 -> int8 [out, in * 3 / 4]. Raises ShapeError unless 32 divides `in`."""
    return pack_planes(codes + 32, WIDTHS)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    return unpack_planes(packed, WIDTHS) - 32


CODECS = (Codec("int6", bits=6, stored=torch.int8, pack=pack, unpack=unpack, low=-31, high=31),)

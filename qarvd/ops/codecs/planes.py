"""Codes in planes of bits, one after the other: a row's lowest bits, densely packed, then its higher ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ...errors import ShapeError

COLUMNS = 32
"""A row has a multiple of so many, so that each plane fills whole 4-byte words."""


def pack_planes(codes: Tensor, widths: Sequence[int]) -> Tensor:
    """Unsigned codes [out, in] in an int8 tensor -> int8 [out, in * sum(widths) / 8].

    Column c's bits begin at bit c * width of a plane; bits count from each byte's lowest. Raises ShapeError unless 32
    divides `in`.
    """
    if codes.shape[-1] % COLUMNS:
        raise ShapeError(f"Codes are packed in groups of {COLUMNS} columns, not {codes.shape[-1]} columns.")
    wide, planes = codes.view(torch.uint8).int(), []
    for width, shift in zip(widths, accumulate(widths, initial=0), strict=False):
        part = (wide >> shift & ((1 << width) - 1)).unflatten(-1, (-1, 8 // width))
        planes.append((part << torch.arange(0, 8, width, device=codes.device)).sum(-1, dtype=torch.int32))
    return torch.cat(planes, dim=-1).to(torch.uint8).view(torch.int8)


def unpack_planes(packed: Tensor, widths: Sequence[int]) -> Tensor:
    """The inverse of `pack_planes`."""
    bits, bytes_ = sum(widths), packed.view(torch.uint8)
    columns = packed.shape[-1] * 8 // bits
    codes, start = bytes_.new_zeros((*packed.shape[:-1], columns)), 0
    for width, shift in zip(widths, accumulate(widths, initial=0), strict=False):
        plane = bytes_[..., start : (start := start + columns * width // 8)]
        parts = [plane >> bit & ((1 << width) - 1) for bit in range(0, 8, width)]
        codes |= torch.stack(parts, dim=-1).flatten(-2) << shift
    return codes.view(torch.int8)

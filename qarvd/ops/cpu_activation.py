"""The activation quantizer on a CPU: the reference, a few tokens at a time.

What it makes on the way is then small enough for the allocator to keep and use again; glibc takes blocks of more than
32 MiB from the system anew each time, which for wide inputs costs as much as the product that follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .product import check_activation

PIECE = 2**21
"""Numbers quantized at a time, 8 MiB of float32; with less, threads meet too often."""


def quantize_activation(x: Tensor, order: Tensor | None, n_outlier: int, guard: float) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.quantize_activation`, to the bit."""
    check_activation(x, order, n_outlier)
    columns = x.shape[-1]
    count = max(1, PIECE // columns)
    if x.numel() <= count * columns:
        return reference.quantize_activation(x, order, n_outlier, guard)
    rows = x.reshape(-1, columns)
    codes = rows.new_empty(rows.shape, dtype=torch.int8)
    scale = rows.new_empty((len(rows), 2), dtype=torch.float32)
    sums = rows.new_empty((len(rows), 2), dtype=torch.int32)
    for start in range(0, len(rows), count):
        some = slice(start, start + count)
        codes[some], scale[some], sums[some] = reference.quantize_activation(rows[some], order, n_outlier, guard)
    return codes, scale, sums

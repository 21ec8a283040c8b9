"""Rotating channels so that none stands out, which is what makes few-bit codes coarse.

A block of `width` channels (a power of two) is multiplied by the regular Hadamard matrix over sqrt(width), a Kronecker
product of 4 x 4 ones whose rows all have the same sum, with the 2 x 2 one on the left if `width` is no power of four.
It is symmetric and its own inverse. ComfyUI's stock formats rotate by the same matrices.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

NUMBERS = 2**21
"""Rotated at a time where that takes a wider dtype, so that no float32 copy of a whole chunk is made."""
REGULAR = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))


@cache
@torch.inference_mode(False)  # kept for all callers
def _matrix(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    block = torch.ones(1, 1, dtype=torch.float64)
    while len(block) * 4 <= width:
        block = torch.kron(torch.tensor(REGULAR, dtype=torch.float64), block)
    if len(block) < width:
        block = torch.kron(torch.tensor(((1, 1), (1, -1)), dtype=torch.float64), block)
    return (block * width**-0.5).to(device, dtype)


def hadamard(width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Orthogonal, symmetric matrix [width, width], its own inverse."""
    if torch.compiler.is_compiling():  # a cached tensor would be a constant of the graph
        return _matrix.__wrapped__(width, device, dtype)
    return _matrix(width, device, dtype)


def rotate(x: Tensor, width: int) -> Tensor:
    """`x` [..., channels] with each block of `width` channels rotated; rotating twice changes nothing but by rounding.

    Computed in float32 at least, in the dtype it came in.
    """
    if width == 1 or not x.numel():
        return x
    if x.dtype in (torch.float32, torch.float64):
        return _rotate(x, width)
    rows = x.reshape(-1, x.shape[-1])
    pieces = rows.split(max(1, NUMBERS // x.shape[-1]))
    return torch.cat([_rotate(some.float(), width).to(x.dtype) for some in pieces]).view(x.shape)


def _rotate(x: Tensor, width: int) -> Tensor:
    inner = min(width, 16)  # two small products are several times faster than one with the whole matrix
    made = x.reshape(-1, inner) @ hadamard(inner, x.device, x.dtype)
    if inner < width:
        made = hadamard(width // inner, x.device, x.dtype) @ made.view(-1, width // inner, inner)
    return made.view(x.shape)


def butterflies(x: Tensor, width: int) -> Tensor:
    """`rotate` of float32 `x` [rows, channels], to the bit as kernels compute it: sums of pairs, nearest ones first.

    The 4 x 4 matrix is Sylvester's with the signs of its last row and column changed and its middle rows exchanged; so
    of each two bits of a channel's number, both set is a sign before and after, and the two are exchanged.
    """
    if width == 1 or not x.numel():
        return x
    index = torch.arange(width, device=x.device)
    pairs = 0x5555 & ((1 << (width.bit_length() - 1) // 2 * 2) - 1)  # the lower of each two bits
    both = index & (index >> 1) & pairs
    odd = both ^ both >> 4
    odd = (odd ^ odd >> 2) & 1  # both are set in an odd number of pairs
    sign = 1.0 - 2.0 * odd
    exchanged = (index & pairs) << 1 | (index >> 1) & pairs | index & ~(pairs * 3)
    made = x.reshape(-1, width) * sign
    step = 1
    while step < width:
        first, second = made.view(-1, 2, step).unbind(1)
        made = torch.stack([first + second, first - second], dim=1).view(-1, width)
        step *= 2
    return (made[:, exchanged] * (sign * width**-0.5)).view(x.shape)

"""Rotating channels so that none stands out, which is what makes 4-bit codes coarse."""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS = 1024
"""Rotated at a time, so that no float32 copy of a whole chunk is made."""


def hadamard(channels: int, device: torch.device) -> Tensor:
    """Orthogonal, symmetric matrix float32 [n, n], its own inverse; n is the largest power of two in `channels`."""
    block = torch.ones(1, 1, device=device)
    while channels % (2 * len(block)) == 0:
        block = torch.cat([torch.cat([block, block], dim=1), torch.cat([block, -block], dim=1)])
    return block * len(block) ** -0.5


def rotate(x: Tensor, block: Tensor) -> Tensor:
    """`x` [..., tokens, channels] with each group of n channels rotated by `block` [n, n].

    Computed in float32 a few tokens at a time, in the dtype it came in. `rotate` twice by `hadamard` changes nothing.
    """

    def rotated(some: Tensor) -> Tensor:
        return (some.float().reshape(-1, len(block)) @ block).view(some.shape).to(x.dtype)

    return torch.cat([rotated(some) for some in x.split(TOKENS, dim=-2)], dim=-2)

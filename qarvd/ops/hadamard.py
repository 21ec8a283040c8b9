"""Turning heads so that no channel stands out, which is what makes 4-bit codes coarse."""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS = 1024
"""Turned at a time, so that no float32 copy of a whole chunk is made."""


def hadamard(channels: int, device: torch.device) -> Tensor:
    """Orthogonal, symmetric matrix float32 [channels, channels]: its own inverse.

    Where `channels` is no power of two, equal blocks of the largest one that divides it.
    """
    block = torch.ones(1, 1, device=device)
    while channels % (2 * len(block)) == 0:
        block = torch.cat([torch.cat([block, block], dim=1), torch.cat([block, -block], dim=1)])
    return torch.block_diag(*[block * len(block) ** -0.5] * (channels // len(block)))


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """`x` [..., tokens, channels] turned, computed in float32 a few tokens at a time, in the dtype it came in."""
    return torch.cat([(some.float() @ rotation).to(x.dtype) for some in x.split(TOKENS, dim=-2)], dim=-2)

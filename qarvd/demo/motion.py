"""Where the digit should be in each frame: a straight path that bounces off the edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .prompts import DIRECTIONS, SPEEDS, STARTS, Prompt

FRAME, GLYPH = 32, 16
"""Side of the square frame and of the digit's box, in pixels."""


def path(prompts: Sequence[Prompt], frames: int) -> Tensor:
    """Top-left corner (x, y) of the digit's box: [batch, frames, 2], whole pixels."""
    start = torch.tensor([STARTS[p.start] for p in prompts])
    step = torch.tensor([DIRECTIONS[p.direction] for p in prompts]) * torch.tensor([[SPEEDS[p.speed]] for p in prompts])
    room = FRAME - GLYPH
    travelled = (start[:, None] + step[:, None] * torch.arange(frames)[None, :, None]) % (2 * room)
    return torch.where(travelled > room, 2 * room - travelled, travelled)

"""Judges demo clips: reads the digit in each frame with a small network, and its motion from the centre of mass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .motion import path
from .prompts import Prompt

CROP = 20
"""Side of the square around the centre of mass that the network reads, in pixels."""


class DigitReader(nn.Module):
    """Two convolutions and a linear layer: crops [n, 20, 20] -> scores of the ten digits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.score = nn.Linear(32 * 5 * 5, 10)

    def forward(self, crops: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(crops.unsqueeze(1)).relu(), 2)
        x = F.max_pool2d(self.second(x).relu(), 2)
        return self.score(x.flatten(1))


def centres(frames: Tensor) -> Tensor:
    """Centre of mass (x, y) of each of `frames` [n, height, width], in pixels: [n, 2]."""
    mass = torch.where(frames < 0.1, 0.0, frames)
    total = mass.sum((1, 2)).clamp_min(1e-3)
    rows = torch.arange(frames.shape[1], dtype=mass.dtype)
    columns = torch.arange(frames.shape[2], dtype=mass.dtype)
    x = (mass.sum(1) * columns).sum(1) / total
    y = (mass.sum(2) * rows).sum(1) / total
    return torch.stack([x, y], dim=1)


def crops(frames: Tensor) -> Tensor:
    """The CROP x CROP square around each frame's centre of mass: [n, CROP, CROP]."""
    half = CROP // 2
    corner = centres(frames).round().long()  # in the padded frame, the crop starts at the unpadded centre
    padded = F.pad(frames, (half, half, half, half))
    offsets = torch.arange(CROP)
    rows = (corner[:, 1, None] + offsets)[:, :, None]
    columns = (corner[:, 0, None] + offsets)[:, None, :]
    return padded[torch.arange(len(frames))[:, None, None], rows, columns]


@torch.no_grad()
def digit_correct(reader: nn.Module, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Whether the digit of each frame of `pixels` [batch, frames, height, width] is the prompt's: [batch, frames]."""
    batch, frames = pixels.shape[:2]
    read = reader(crops(pixels.flatten(0, 1))).argmax(1).view(batch, frames)
    return read == torch.tensor([p.digit for p in prompts])[:, None]


def motion_correct(pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Whether the digit moves as prompted between frames: [batch, frames - 1].

    On each axis the sign of the step must be right, a step below half the prompted speed counting as none.
    """
    batch, frames = pixels.shape[:2]
    moved = centres(pixels.flatten(0, 1)).view(batch, frames, 2).diff(dim=1)
    expected = path(prompts, frames).diff(dim=1)
    half_step = expected.abs().amax((1, 2), keepdim=True) / 2
    return (torch.where(moved.abs() < half_step, 0.0, moved.sign()) == expected.sign()).all(-1)

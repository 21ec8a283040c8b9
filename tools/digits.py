"""Moving digits from scikit-learn's bundled UCI set: glyphs for the model, glyphs that nothing has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from qarvd.demo.motion import FRAME, GLYPH, path
from qarvd.demo.prompts import Prompt

SEEN = 1500
"""Glyphs used to train the model and the judge; the other 297 are held out from both."""


class Glyphs:
    """All 1,797 digits in a fixed shuffled order: `images` [n, 16, 16] in 0..1, `labels` [n]."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        small = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
        self.images = F.interpolate(small, size=GLYPH, mode="bicubic").clamp(0, 1)[:, 0]
        self.labels = torch.tensor(labels)[order]
        self._of_digit = [torch.nonzero(self.labels[:SEEN] == d)[:, 0] for d in range(10)]

    def pick(self, prompts: Sequence[Prompt], generator: torch.Generator) -> Tensor:
        """A random training glyph of each prompt's digit: [batch, 16, 16]."""
        chosen = []
        for prompt in prompts:
            pool = self._of_digit[prompt.digit]
            chosen.append(pool[torch.randint(len(pool), (), generator=generator)])
        return self.images[torch.stack(chosen)]


def render(glyphs: Tensor, corners: Tensor) -> Tensor:
    """Place `glyphs` [batch, 16, 16] at `corners` (x, y) [batch, frames, 2]: frames [batch, frames, 32, 32]."""
    batch, frames = corners.shape[:2]
    video = torch.zeros(batch, frames, FRAME, FRAME)
    side = torch.arange(GLYPH)
    rows = (corners[..., 1, None] + side)[..., :, None]
    columns = (corners[..., 0, None] + side)[..., None, :]
    b, f = torch.arange(batch)[:, None, None, None], torch.arange(frames)[None, :, None, None]
    video[b, f, rows, columns] = glyphs[:, None].expand(-1, frames, -1, -1)
    return video


def clips(glyphs: Glyphs, prompts: Sequence[Prompt], frames: int, generator: torch.Generator) -> Tensor:
    """Ground-truth pixels of `prompts`: [batch, frames, 32, 32]."""
    return render(glyphs.pick(prompts, generator), path(prompts, frames))

"""Video strips of several variants one below the other, so that a frame and its copies share a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .page import Picture
from .png import png_bytes
from .sheet import contact_sheet

WIDTH, HEIGHT = 1040, 64
"""Screen pixels of a strip, and about those of a frame's height."""


def strips(clips: Mapping[str, Tensor], prompts: Sequence[str]) -> Picture:
    """A contact sheet for each prompt, in one picture: rows are variants, columns frames over time.

    `clips` are grey [prompts, frames, height, width] or RGB [..., 3], floats in 0..1, of one shape.
    """
    frames, height, width = next(iter(clips.values())).shape[1:4]
    scale = max(1, round(HEIGHT / height))
    fitting = max(2, WIDTH // (width * scale))
    chosen = range(0, frames, -(-frames // fitting))
    sheets = [
        contact_sheet({prompt: torch.stack([clip[i] for clip in clips.values()])}, chosen, list(clips), scale)
        for i, prompt in enumerate(prompts)
    ]
    about = f"Frames of {', '.join(clips)}, one below the other: {'; '.join(prompts)}."
    return Picture("Side by side", about, png_bytes(torch.cat(sheets)))

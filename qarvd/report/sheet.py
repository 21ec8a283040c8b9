"""A contact sheet: the same clips by several models side by side, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ShapeError
from .font import HEIGHT, draw_text, fit, text_width
from .pixels import enlarge, to_rgb

BACKGROUND, EDGE = (0.075, 0.085, 0.105), (0.24, 0.27, 0.32)
BRIGHT, DIM = (0.92, 0.94, 0.97), (0.56, 0.61, 0.68)
TEXT = 2
"""Screen pixels of a pixel of the font."""
LINE = HEIGHT * TEXT
MARGIN, GAP, SEAM = 24, 20, 1


def contact_sheet(
    columns: Mapping[str, Tensor], frames: Sequence[int], labels: Sequence[str], scale: int = 3
) -> Tensor:
    """Rows of strips: for each sample, captioned by its label, the given frames of each variant: [height, width, 3].

    `columns` maps a variant to its clips, grey [samples, frames, height, width] or RGB [..., 3], floats in 0..1.
    """
    clips = {name: _chosen(name, clip, frames, labels) for name, clip in columns.items()}
    shapes = {tuple(clip.shape) for clip in clips.values()}
    if len(shapes) != 1:
        raise ShapeError(f"A contact sheet needs clips of one size, but these are {sorted(shapes)}.")
    samples, shown, height, width = (int(n) for n in shapes.pop()[:4])
    height, width = height * scale, width * scale

    strip = shown * (width + SEAM) + SEAM
    row = LINE + 8 + height + 2 * SEAM
    header = LINE + 8 + LINE + GAP
    total_width = 2 * MARGIN + len(clips) * (strip + GAP) - GAP
    total_height = 2 * MARGIN + header + samples * (row + GAP) - GAP
    image = torch.tensor(BACKGROUND).expand(total_height, total_width, 3).clone()  # [height, width, 3]

    for column, (name, clip) in enumerate(clips.items()):
        left = MARGIN + column * (strip + GAP)
        draw_text(image, fit(name, strip, TEXT), left, MARGIN, TEXT, BRIGHT)
        for index, frame in enumerate(frames):
            number = f"frame {frame}" if index == 0 and width > text_width(f"frame {frame}", TEXT) else str(frame)
            middle = left + SEAM + index * (width + SEAM) + width // 2
            draw_text(image, number, middle - text_width(number, TEXT) // 2, MARGIN + LINE + 8, TEXT, DIM)
        for sample in range(samples):
            top = MARGIN + header + sample * (row + GAP) + LINE + 8
            image[top : top + height + 2 * SEAM, left : left + strip] = torch.tensor(EDGE)
            for index in range(shown):
                x = left + SEAM + index * (width + SEAM)
                image[top + SEAM : top + SEAM + height, x : x + width] = enlarge(clip[sample, index], scale)
    for sample, label in enumerate(labels):
        top = MARGIN + header + sample * (row + GAP)
        draw_text(image, fit(label, total_width - 2 * MARGIN, TEXT), MARGIN, top, TEXT, DIM)
    return image


def _chosen(name: str, clip: Tensor, frames: Sequence[int], labels: Sequence[str]) -> Tensor:
    """The frames to show, RGB [samples, shown, height, width, 3]."""
    if clip.ndim not in (4, 5) or clip.shape[0] != len(labels) or not labels or not frames:
        raise ShapeError(
            f"{name} has clips of shape {tuple(clip.shape)} for {len(labels)} labels, {len(frames)} frames."
        )
    if not 0 <= min(frames) <= max(frames) < clip.shape[1]:
        raise ShapeError(f"{name} has frames 0 to {clip.shape[1] - 1}; frames {list(frames)} were asked for.")
    picked = clip[:, list(frames)].detach().float().cpu().nan_to_num(0.0).clamp(0, 1)
    return picked if clip.ndim == 5 else to_rgb(picked)

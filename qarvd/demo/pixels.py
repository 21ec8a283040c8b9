"""The demo's latent codec: an exact rearrangement of grey pixels, so that decoding loses nothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PATCH = 4
MEAN, DEVIATION = 0.075, 0.2
"""Mean and standard deviation of the training pixels; latents are close to unit scale."""


def encode(pixels: Tensor) -> Tensor:
    """Grey `pixels` [batch, frames, height, width] in 0..1 -> latents [batch, 16, frames, height / 4, width / 4]."""
    return ((F.pixel_unshuffle(pixels.unsqueeze(2), PATCH) - MEAN) / DEVIATION).transpose(1, 2)


def decode(latents: Tensor) -> Tensor:
    """Latents in the model's own space -> grey pixels in 0..1, one pixel frame per latent frame."""
    pixels = F.pixel_shuffle(latents.float().transpose(1, 2), PATCH).squeeze(2)
    return (pixels * DEVIATION + MEAN).clamp(0, 1)

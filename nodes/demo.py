"""The demo's decoder and language, in the shape in which ComfyUI's own nodes use a VAE and a CLIP."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import torch.nn.functional as F
from torch import Tensor

from ..qarvd.demo import bundle, pixels
from ..qarvd.demo.motion import FRAME
from ..qarvd.demo.prompts import Prompt, parse
from ..qarvd.errors import ShapeError


def conditioning(prompt: Prompt) -> list[Any]:
    """A CONDITIONING, padded as those of Wan's text encoder are: ComfyUI's own samplers pad nothing."""
    text = bundle.embed([prompt])
    return [[F.pad(text, (0, 0, 0, bundle.TEXT_LEN - text.shape[1])), {}]]


class Decoder:
    """The demo's latent codec as a VAE: latents in ComfyUI's space, one pixel frame per latent frame."""

    def __init__(self) -> None:
        self.latent_format = comfy.latent_formats.Wan21()

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        """Latents [batch, 16, frames, 8, 8] -> RGB [batch, frames, 32, 32, 3] in 0..1."""
        side = bundle.LATENT_SIDE
        if samples.ndim != 5 or samples.shape[1] != 16 or samples.shape[3:] != (side, side):
            raise ShapeError(
                f"The latents have shape {tuple(samples.shape)}, but the decoder of the demo model needs [batch, 16, "
                f"frames, {side}, {side}]. Decode others with the VAE of their own model."
            )
        grey = pixels.decode(self.latent_format.process_in(samples.float()))
        return grey.unsqueeze(-1).repeat(1, 1, 1, 1, 3)

    def temporal_compression_decode(self) -> None:
        """As of ComfyUI's VAEs of images, for nodes that ask before they tile: a frame for each latent frame."""

    def spacial_compression_decode(self) -> int:
        """Pixels along a latent's side."""
        return pixels.PATCH

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        """The same: there is nothing to tile."""
        return self.decode(samples)

    def encode(self, image: Tensor) -> Tensor:
        """RGB frames [frames, height, width, 3] -> latents [1, 16, frames, 8, 8]; other sizes are scaled."""
        grey = image[..., :3].float().mean(-1)  # [frames, height, width]
        if grey.shape[1:] != (FRAME, FRAME):
            grey = F.interpolate(grey[:, None], size=(FRAME, FRAME), mode="area")[:, 0]
        return self.latent_format.process_out(pixels.encode(grey[None]))


class Language:
    """The demo's prompts as a CLIP."""

    def tokenize(self, text: str, **_: Any) -> str:
        """Texts are taken whole."""
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **_: Any) -> list[Any]:
        """A conditioning. Raises PromptError, saying what the demo knows, for a text it does not understand."""
        return conditioning(parse(tokens))

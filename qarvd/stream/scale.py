"""What a video in pixels is in latents, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingError
from ..wan.config import WanConfig

MOST_PIXELS = 8192
"""Of a video's width, and of its height."""
USUAL = 832, 480
"""Width and height that Wan 2.1's small model, and what was distilled from it, were trained for."""


@dataclass(frozen=True)
class Scale:
    """How latents become pixels."""

    side: int
    """Pixels that a latent position is wide and high."""
    frames: int
    """Pixel frames of every latent frame but the first, which is one."""
    only: tuple[int, int] | None = None
    """Width and height of the videos, where the model has been trained for no others."""

    @property
    def usual(self) -> tuple[int, int]:
        """Width and height of a video, where nothing is said."""
        return self.only or USUAL

    def pixel_frames(self, latent_frames: int) -> int:
        """Frames of the video that so many latent frames, from the first on, decode to."""
        return 1 + self.frames * (latent_frames - 1) if latent_frames else 0

    def latent_size(self, config: WanConfig, width: int, height: int) -> tuple[int, int]:
        """Height and width of the latents of a video. Raises SettingError for a size that the model cannot have."""
        if self.only is not None and (width, height) != self.only:
            raise SettingError(
                f"This model draws {self.only[0]} x {self.only[1]} pixels (the demo has no other size), but "
                f"{width} x {height} were asked for."
            )
        _, rows, columns = config.patch_size
        near = _nearest(width, self.side * columns), _nearest(height, self.side * rows)
        if near != (width, height):
            unit = self.side * columns, self.side * rows
            both = f"both must be multiples of {unit[0]}"
            if unit[0] != unit[1]:
                both = f"the width must be a multiple of {unit[0]} and the height of {unit[1]}"
            raise SettingError(
                f"A video of {width} x {height} pixels (width x height) can't be made: {both}, {MOST_PIXELS} at most; "
                f"the nearest is {near[0]} x {near[1]}."
            )
        return height // self.side, width // self.side


def _nearest(pixels: int, unit: int) -> int:
    return min(max(1, round(pixels / unit)), MOST_PIXELS // unit) * unit


WAN = Scale(side=8, frames=4)
"""Of Wan 2.1's VAE."""

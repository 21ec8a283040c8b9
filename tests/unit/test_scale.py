"""Videos in pixels and in latents."""

import pytest
import torch

from qarvd.demo import pixels
from qarvd.demo.motion import FRAME
from qarvd.errors import SettingError
from qarvd.stream.presets import PRESETS
from qarvd.stream.scale import WAN
from qarvd.wan.config import WanConfig

CONFIG = WanConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2)
DEMO = PRESETS["demo"].scale


def test_a_size_in_pixels_is_one_in_latents() -> None:
    assert WAN.latent_size(CONFIG, 832, 480) == (60, 104)
    assert WAN.latent_size(CONFIG, 480, 832) == (104, 60)
    assert WAN.latent_size(CONFIG, 16, 8192) == (1024, 2)
    assert all(preset.scale == WAN for name, preset in PRESETS.items() if name != "demo")


@pytest.mark.parametrize(
    ("width", "height", "nearest"),
    [
        *((100, 480, "96 x 480"), (832, 488, "832 x 480"), (60, 104, "64 x 96"), (838, 473, "832 x 480")),
        *((0, 480, "16 x 480"), (832, 9000, "832 x 8192"), (-16, 32, "16 x 32")),
    ],
)
def test_a_size_that_cannot_be_made_is_refused_with_the_nearest_that_can(width: int, height: int, nearest: str) -> None:
    told = f"{width} x {height} pixels .* both must be multiples of 16, 8192 at most; the nearest is {nearest}"
    with pytest.raises(SettingError, match=told):
        WAN.latent_size(CONFIG, width, height)


@pytest.mark.parametrize("size", [(832, 480), (34, 32), (36, 36), (16, 16), (8, 8)])
def test_the_demo_has_one_size(size: tuple[int, int]) -> None:
    assert DEMO.latent_size(CONFIG, FRAME, FRAME) == (8, 8)
    with pytest.raises(SettingError, match=f"draws 32 x 32 pixels .* {size[0]} x {size[1]} were asked for"):
        DEMO.latent_size(CONFIG, *size)


def test_the_demos_scale_is_that_of_its_pixels() -> None:
    decoded = pixels.decode(torch.zeros(1, 16, 5, *DEMO.latent_size(CONFIG, FRAME, FRAME)))
    assert decoded.shape == (1, DEMO.pixel_frames(5), FRAME, FRAME) and DEMO.side == pixels.PATCH


def test_the_first_latent_frame_is_one_pixel_frame_and_each_other_four() -> None:
    assert [WAN.pixel_frames(frames) for frames in (0, 1, 2, 21)] == [0, 1, 5, 81]
    assert [DEMO.pixel_frames(frames) for frames in (0, 1, 2, 21)] == [0, 1, 2, 21]

"""PSNR and SSIM as their papers define them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qarvd.errors import ShapeError
from qarvd.report.similarity import frame_errors, psnr, ssim


def video(seed: int, frames: int = 3, side: int = 24) -> Tensor:
    """Random smooth frames [frames, side, side, 3] in 0..1."""
    noise = torch.rand(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2).movedim(1, -1)


def test_a_video_is_like_itself() -> None:
    a = video(0)
    assert frame_errors(a, a).tolist() == [0.0] * 3
    assert torch.isinf(psnr(frame_errors(a, a))).all()
    assert torch.allclose(ssim(a, a), torch.ones(3, dtype=torch.float64))


def test_psnr_of_a_known_error() -> None:
    a = torch.zeros(2, 8, 8, 3)
    assert torch.allclose(psnr(frame_errors(a, a + 0.1)), torch.full((2,), 20.0, dtype=torch.float64), atol=1e-5)


def test_ssim_of_flat_frames_is_the_luminance_term() -> None:
    a, b = torch.full((1, 16, 16, 1), 0.2), torch.full((1, 16, 16, 1), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert math.isclose(ssim(a, b).item(), expected, rel_tol=1e-5)


@given(st.integers(0, 50), st.floats(0.01, 0.3))
def test_more_noise_is_less_alike(seed: int, level: float) -> None:
    a = video(seed)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed + 1))
    little, much = a + level * noise, a + 2 * level * noise
    assert (ssim(a, little) > ssim(a, much)).all()
    assert (psnr(frame_errors(a, little)) > psnr(frame_errors(a, much))).all()


def test_ssim_does_not_mind_the_order() -> None:
    a, b = video(1), video(2)
    assert torch.allclose(ssim(a, b), ssim(b, a))


def test_small_frames_are_compared_whole() -> None:
    a = video(3, side=4)
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("other", [torch.zeros(3, 24, 24, 1), torch.zeros(2, 24, 24, 3), torch.zeros(24, 24, 3)])
def test_videos_of_other_shapes_are_refused(other: Tensor) -> None:
    with pytest.raises(ShapeError, match="only videos of the same size and length"):
        ssim(video(0), other)

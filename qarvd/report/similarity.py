"""How alike two videos are, frame by frame: PSNR, and SSIM of Wang et al. 2004."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of SSIM's Gaussian window, in pixels."""
C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants for pixels in 0..1."""


def check_alike(a: Tensor, b: Tensor) -> None:
    """Raise ShapeError unless both are videos [frames, height, width, channels] of one shape."""
    if a.shape != b.shape or a.ndim != 4 or not a.numel():
        raise ShapeError(
            f"The videos have shapes {tuple(a.shape)} and {tuple(b.shape)} (frames, height, width, channels); only "
            "videos of one size and length compare."
        )


def frame_errors(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each frame, [frames]."""
    check_alike(a, b)
    return (a.double() - b.double()).square().flatten(1).mean(1)


def psnr(errors: Tensor) -> Tensor:
    """dB for mean squared `errors` of pixels in 0..1; infinite where there is none."""
    return -10 * errors.log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each frame, [frames], mean over pixels and channels; pixels in 0..1.

    Frames smaller than the window of 11 are compared in one of their own size.
    """
    check_alike(a, b)
    x, y = (v.double().movedim(-1, 1) for v in (a, b))  # [frames, channels, height, width]
    side = min(WINDOW, x.shape[2], x.shape[3])
    weights = torch.exp(-((torch.arange(side, dtype=x.dtype, device=x.device) - (side - 1) / 2) ** 2) / (2 * SIGMA**2))
    kernel = torch.outer(weights, weights)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, side, side)

    def mean(v: Tensor) -> Tensor:
        return F.conv2d(v, kernel, groups=x.shape[1])

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    found = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    found = found / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))
    return found.flatten(1).mean(1)

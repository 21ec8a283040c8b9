"""How alike two videos are, frame by frame: PSNR, and SSIM of Wang et al. 2004."""

from __future__ import annotations

from collections.abc import Callable

import torch
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
            "videos of the same size and length can be compared."
        )


def frame_errors(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each frame, [frames]."""
    check_alike(a, b)
    return torch.stack([(x.double() - y.double()).square().mean() for x, y in zip(a, b, strict=True)])


def psnr(errors: Tensor) -> Tensor:
    """dB for mean squared `errors` of pixels in 0..1; infinite where there is none."""
    return -10 * errors.log10()


def ssim(a: Tensor, b: Tensor, on_frame: Callable[[], object] = lambda: None) -> Tensor:
    """Structural similarity of each frame, [frames], mean over pixels and channels; pixels in 0..1.

    Frames smaller than the window of 11 are compared in one of their own size. `on_frame` may raise to stop.
    """
    check_alike(a, b)
    height, width, _ = a.shape[1:]
    side = min(WINDOW, height, width)
    rows, columns = (_windows(length, side).to(a.device) for length in (height, width))
    found = []
    for x, y in zip(a, b, strict=True):  # one at a time: in float64 a long video would not fit the memory
        found.append(_frame_ssim(x.double().movedim(-1, 0), y.double().movedim(-1, 0), rows, columns))
        on_frame()
    return torch.stack(found)


def _windows(length: int, side: int) -> Tensor:
    """SSIM's window of `side` pixels at each of its places along an axis, [length - side + 1, length]."""
    weights = torch.exp(-((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) ** 2) / (2 * SIGMA**2))
    placed = torch.zeros(length - side + 1, length, dtype=torch.float64)
    for offset, weight in enumerate(weights / weights.sum()):
        placed.diagonal(offset).fill_(weight)
    return placed


def _frame_ssim(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean structural similarity of two frames [channels, height, width]."""

    def mean(v: Tensor) -> Tensor:
        return rows @ v @ columns.T  # the window is a product; torch's convolution is much slower in float64

    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    found = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return (found / ((mean_x**2 + mean_y**2 + C1) * (variances + C2))).mean()

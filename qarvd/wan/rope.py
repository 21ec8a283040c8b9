"""Rotary position embedding in three axes: angles in float64, so that no stream is too long for them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..float64 import to_float64

THETA = 10_000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs given to time, height and width, e.g. 22, 21, 21 at head_dim 128 (Wan, `rope_params`)."""
    pairs = head_dim // 2
    side = pairs // 3
    return pairs - 2 * side, side, side


def _axis_angles(positions: Tensor, pairs: int) -> Tensor:
    """Angles of one axis: `positions` [n] -> [n, pairs], float64."""
    places = to_float64(positions)
    exponent = torch.arange(pairs, dtype=torch.float64, device=places.device) / pairs
    return places[:, None] * THETA**-exponent


def cosine_sine(angles: Tensor) -> Tensor:
    """Float32 [..., pairs, 2] of cosine and sine of float64 `angles` [..., pairs]."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def grid_rotation(frames: Tensor, height: int, width: int, head_dim: int) -> Tensor:
    """Rotation of every token of a grid: [frames * height * width, head_dim / 2, 2], float32, where `frames` lie.

    `frames` [n] holds the absolute latent frame index of each frame; height and width count patches.
    """
    time, rows, columns = axis_pairs(head_dim)
    n = len(frames)
    device = frames.device
    parts = [
        _axis_angles(frames, time)[:, None, None].expand(n, height, width, time),
        _axis_angles(torch.arange(height, device=device), rows)[None, :, None].expand(n, height, width, rows),
        _axis_angles(torch.arange(width, device=device), columns)[None, None].expand(n, height, width, columns),
    ]
    return cosine_sine(torch.cat(parts, dim=-1).reshape(n * height * width, head_dim // 2)).to(device)


def time_shift(frames: Tensor, head_dim: int) -> Tensor:
    """Rotation that moves keys by `frames` [n] latent frames in time: [n, head_dim / 2, 2], float32, where they lie."""
    time, rows, columns = axis_pairs(head_dim)
    angles = _axis_angles(frames, time)
    still = angles.new_zeros(len(frames), rows + columns)
    return cosine_sine(torch.cat([angles, still], dim=-1)).to(frames.device)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of `x` [..., head_dim] by `rotation` [..., head_dim / 2, 2], in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotation.unbind(-1)
    rotated = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return rotated.flatten(-2).to(x.dtype)

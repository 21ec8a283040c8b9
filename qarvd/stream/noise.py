"""Where fresh noise comes from: a seeded generator, or tensors someone hands in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..errors import SettingError, ShapeError

NoiseSource = Callable[[Sequence[int]], Tensor]
"""Called with a shape [batch, channels, frames, height, width], returns standard normal noise of that shape."""


def from_seeds(
    seeds: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> NoiseSource:
    """One generator per sample, on the CPU, so that a sample is the same in any batch and on any device.

    Raises SettingError for a seed beyond 64 bits.
    """
    for seed in seeds:
        if not -(2**63) <= seed < 2**64:
            raise SettingError(f"The seed {seed} does not fit 64 bits; choose one from 0 to {2**64 - 1}.")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(shape: Sequence[int]) -> Tensor:
        if shape[0] != len(generators):
            raise ShapeError(f"There are {len(generators)} seeds for a batch of {shape[0]}.")
        return torch.stack([torch.randn(shape[1:], generator=g) for g in generators]).to(device, dtype)

    return draw


def from_tensors(tensors: Iterable[Tensor]) -> NoiseSource:
    """Hand out `tensors` in order. Raises ShapeError when one does not fit or none is left."""
    remaining = iter(tensors)

    def draw(shape: Sequence[int]) -> Tensor:
        tensor = next(remaining, None)
        if tensor is None or tuple(tensor.shape) != tuple(shape):
            actual = "none is left" if tensor is None else f"the next one is {tuple(tensor.shape)}"
            raise ShapeError(f"Noise of shape {tuple(shape)} was asked for, but {actual}.")
        return tensor

    return draw

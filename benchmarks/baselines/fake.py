"""A linear whose quantization is simulated: rounded values in floating point, and what storing them would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qarvd.ops import reference
from qarvd.ops.split import ChannelSplit

Rounded = Callable[[Tensor], Tensor]
"""Activations [..., in] as quantization leaves them."""


class FakeLinear(nn.Module):
    """`F.linear` on rounded weights [out, in] and activations, after a matrix `transform` [in, in], if any."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rounded: Rounded, transform: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.rounded, self.transform = weight, bias, rounded, transform

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.rounded(x if self.transform is None else x @ self.transform), self.weight, self.bias)


def stored_bytes(weight: Tensor, bits: int, n_outlier: int) -> int:
    """Bytes of codes, two scales and two zero points a row, and the list of outliers: as docs/format.md has it."""
    return weight.numel() * bits // 8 + len(weight) * 2 * (4 + 1) + 4 * n_outlier


def dynamic(split: ChannelSplit) -> Rounded:
    """The runtime's: 8 bits, one step for each token and range, symmetric."""
    part = (torch.arange(split.channels) >= split.n_outlier).long()

    def rounded(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).float()
        codes, steps, _ = reference.quantize_activation(flat, split.columns(flat.device), 0.0)
        return split.to_logical(codes.float() * steps[:, part]).view(x.shape)

    return rounded


@dataclass(frozen=True)
class Static:
    """One step and zero point of each channel, the same for all tokens; 8 bits from 0 to 255."""

    step: Tensor
    """[in]."""
    zero: Tensor
    """[in]."""

    def __call__(self, x: Tensor) -> Tensor:
        code = ((x / self.step).round() + self.zero).clamp(0, 255)
        return (code - self.zero) * self.step

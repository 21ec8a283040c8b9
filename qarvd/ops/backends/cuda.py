"""The linear on NVIDIA cards, by our kernels: what `reference.dual_scale_linear` means, to the bit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import library
from ..cuda import device, kernels
from ..cuda.arguments import aligned
from ..values import PackedWeight, Prepared, Tokens
from ..weight import QuantizedWeight
from . import weight_only
from .base import Backend, is_traced, sharing

FEW_TOKENS = 8
"""Up to here weights are dequantized instead: a tile of the kernels is 64 tokens."""


def refuses(weight: QuantizedWeight) -> str | None:
    """Why the kernels can't run `weight`."""
    split = weight.split
    return kernels.refuses_linear(split.channels, split.n_outlier, weight.codec.bits) or device.refuses(
        weight.codes.device
    )


def prepare(weight: QuantizedWeight) -> Prepared:
    """Load the kernels that calls will launch, and copy a weight that lies where they can't read it."""
    packed = weight.packed
    if not is_traced(weight):
        launcher = device.launcher(weight.codes.device)
        kernels.prepare_activation(launcher)
        kernels.prepare_linear(launcher, weight.codec.bits)
        codes, scale, zero, n_outlier, bits = packed
        packed = PackedWeight(aligned(codes), aligned(scale), aligned(zero), n_outlier, bits)
    few = weight_only.prepare(weight)

    def multiply(tokens: Tokens, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return library.dual_scale_linear(tokens, packed, bias, dtype)

    many = sharing(weight, multiply)

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        return (few if x.numel() <= FEW_TOKENS * x.shape[-1] else many).run(x, bias)

    return replace(many, run=run, few=FEW_TOKENS)


CUDA = Backend("cuda", refuses, prepare)

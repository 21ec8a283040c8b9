"""The linear on NVIDIA cards, by our kernels: what `reference.dual_scale_linear` means, to the bit."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..cuda import device, kernels
from ..cuda.arguments import aligned
from ..values import Prepared
from ..weight import QuantizedWeight
from . import weight_only
from .base import Backend, decoding, is_traced, sharing

FEW_TOKENS = 8
"""Up to here weights are dequantized instead: a tile of the kernels is 64 tokens."""


def refuses(weight: QuantizedWeight) -> str | None:
    """Why the kernels can't run `weight`."""
    split = weight.split
    return kernels.refuses_linear(split.channels, split.n_outlier) or device.refuses(weight.codes.device)


def prepare(weight: QuantizedWeight) -> Prepared:
    """Load the kernels that calls will launch, and copy a weight that lies where they can't read it."""
    if not is_traced(weight):
        launcher = device.launcher(weight.codes.device)
        for prepare_kernels in (kernels.prepare_activation, kernels.prepare_decode, kernels.prepare_linear):
            prepare_kernels(launcher)
        moved = {name: aligned(getattr(weight, name)) for name in ("codes", "scale", "zero", "group_scale", "table")}
        weight = replace(weight, **moved)
    few, many = weight_only.prepare(weight), sharing(weight, decoding(weight))

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        return (few if x.numel() <= FEW_TOKENS * x.shape[-1] else many).run(x, bias)

    return replace(many, run=run, few=FEW_TOKENS)


CUDA = Backend("cuda", refuses, prepare)

"""Weights alone are quantized: dequantized at each call into a product of the library, tokens as they are.

For cards that our kernels don't run on, and for batches so small that a kernel's tiles would be mostly empty.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .backend import Backend, Run
from .weight import QuantizedWeight

FEW_TOKENS = 8
"""Up to here weights alone are quantized on cards: a tile of the kernels is 64 tokens."""


def refuses(weight: QuantizedWeight) -> str | None:
    """Why weights are not dequantized here."""
    return "it is for graphics cards" if weight.codes.device.type == "cpu" else None


def prepare(weight: QuantizedWeight, bias: Tensor | None) -> Run:
    """No weight is laid out: memory is what quantized weights are for. Tokens are brought into its columns' order."""
    order = weight.split.order.to(weight.codes.device) if weight.split.n_outlier else None

    def run(x: Tensor) -> Tensor:
        if order is not None:
            x = x[..., order]
        return F.linear(x, weight.columns().to(x.dtype), None if bias is None else bias.to(x.dtype))

    return run


WEIGHT_ONLY = Backend(
    "weight-only",
    refuses,
    prepare,
    takes_floats=True,
    caveat=lambda weight: (
        "Quantized linears are dequantized at every call here: smaller, but slower than full precision."
    ),
)

"""Weights alone are quantized: dequantized at each call into a product of the library, tokens as they are.

For cards that our kernels don't run on, and for batches so small that a kernel's tiles would be mostly empty.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..split import to_columns
from ..values import Prepared
from ..weight import QuantizedWeight, restore
from .base import Backend

CAVEAT = "Quantized linears are dequantized at every call here: smaller, but slower than full precision."


def refuses(weight: QuantizedWeight) -> str | None:
    """Why weights are not dequantized here."""
    return "it is for graphics cards" if weight.codes.device.type == "cpu" else None


def prepare(weight: QuantizedWeight) -> Prepared:
    """No weight is laid out: memory is what quantized weights are for. Tokens are brought into its columns' order."""
    packed, order, unpack = weight.packed, weight.order, weight.codec.unpack

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        columns = restore(unpack(packed.codes), packed.scale, packed.zero, packed.n_outlier)
        return F.linear(to_columns(x, order), columns.to(x.dtype), None if bias is None else bias.to(x.dtype))

    return Prepared(run)


WEIGHT_ONLY = Backend(
    "weight-only",
    refuses,
    prepare,
    caveat=lambda weight: CAVEAT,
)

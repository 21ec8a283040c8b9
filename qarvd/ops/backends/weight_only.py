"""Weights alone are quantized: dequantized at each call into a product of the library, tokens as they are.

For cards that our kernels don't run on, and for batches so small that a kernel's tiles would be mostly empty.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import library
from ..values import Prepared
from ..weight import QuantizedWeight
from .base import Backend, is_traced

CAVEAT = "Quantized linears are dequantized at every call here: smaller, but slower than full precision."


def refuses(weight: QuantizedWeight) -> str | None:
    """Why weights are not dequantized here."""
    return "it is for graphics cards" if weight.codes.device.type == "cpu" else None


def prepare(weight: QuantizedWeight) -> Prepared:
    """No weight is laid out: memory is what quantized weights are for. Tokens become its columns."""
    packed, plain, columns = weight.packed, weight.with_codes(weight.codes), weight.columns
    if not is_traced(weight):
        columns.lay_out(weight.shape[1], weight.codes.device)

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        restored = plain._replace(codes=library.decode_weight(packed)).restore()
        return F.linear(columns.to_columns(x), restored.to(x.dtype), None if bias is None else bias.to(x.dtype))

    return Prepared(run)


WEIGHT_ONLY = Backend(
    "weight-only",
    refuses,
    prepare,
    caveat=lambda weight: CAVEAT,
)

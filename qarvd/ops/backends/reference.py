"""The linear as torch dispatches the op: plain torch on any device, a kernel of ours on a card that has them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import library
from ..values import Prepared, Tokens
from ..weight import QuantizedWeight
from .base import Backend, sharing


def prepare(weight: QuantizedWeight) -> Prepared:
    """Nothing is laid out."""
    packed = weight.packed

    def multiply(tokens: Tokens, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return library.dual_scale_linear(tokens, packed, bias, dtype)

    return sharing(weight, multiply)


REFERENCE = Backend(
    "reference",
    refuses=lambda weight: None,
    prepare=prepare,
    caveat=lambda weight: "Quantized linears run in plain torch here, which is slower than full precision.",
)

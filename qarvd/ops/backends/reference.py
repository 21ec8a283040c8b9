"""The linear as torch dispatches the op: plain torch on any device, a kernel of ours on a card that has them."""

from __future__ import annotations

from ..values import Prepared
from ..weight import QuantizedWeight
from .base import Backend, decoding, sharing


def prepare(weight: QuantizedWeight) -> Prepared:
    """Nothing is laid out."""
    return sharing(weight, decoding(weight))


REFERENCE = Backend(
    "reference",
    refuses=lambda weight: None,
    prepare=prepare,
    caveat=lambda weight: "Quantized linears run in plain torch here, which is slower than full precision.",
)

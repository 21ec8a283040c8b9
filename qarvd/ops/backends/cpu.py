"""The linear on a CPU through oneDNN's 8-bit products: within half a unit of the normal range of the reference.

Activations are handed over as unsigned bytes around 128. On processors without VNNI, oneDNN adds pairs of products
in 16 bits, which saturates silently for weights beyond 64; a start-up probe tells, and 8-bit weights then run as whole
numbers in float32, in pieces of the input that float32 sums exactly. With AMX, sums of unsigned bytes beyond 2^24 are
rounded to float32 before the 128 are taken off: by one part in 2^24 of such a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import first_line
from ..values import Prepared, Tokens
from ..weight import QuantizedWeight
from .base import Backend, is_traced, sharing

EXACT_COLUMNS = 1040
"""Products of two 8-bit codes that float32 sums without rounding: 1040 * 127 * 127 < 2^24."""

SAFE = 64
"""Weights up to here do not saturate anywhere."""

SMALL = 2**17
"""Weights below this are multiplied faster than tokens are quantized, unless there are about a thousand."""

Product = Callable[[Tensor], Tensor]
"""Codes int8 [M, K] -> float32 [M, N], the integer product times the weight's scale."""


def refuses(weight: QuantizedWeight) -> str | None:
    """Why the CPU backend can't run `weight`."""
    if weight.codes.device.type != "cpu":
        return f"the weight is on {weight.codes.device}"
    if is_traced(weight):
        return "a graph is being traced, and weights can't be laid out in it"
    return _trouble()


@cache
def _trouble() -> str | None:
    """Why this torch's 8-bit products can't be used on this processor, found by running a small one."""
    codes = (torch.arange(16 * 64).view(16, 64) % 15 - 7).to(torch.int8)
    try:
        actual = _byte_product(codes, torch.ones(16))(codes)
    except (RuntimeError, AttributeError) as error:
        return f"this torch lacks oneDNN's 8-bit products ({first_line(error)})"
    expected = codes.double() @ codes.double().T
    return None if torch.equal(actual.double(), expected) else "oneDNN's 8-bit products are wrong"


def _caveat(weight: QuantizedWeight) -> str | None:
    if weight.codec.high > SAFE and not sums_exactly():
        return (
            "This processor lacks 8-bit dot products (VNNI): weights of 8 bits, and those with a scale for each group, "
            "run at about 0.6 of full-precision speed."
        )
    if weight.shape[0] * weight.shape[1] < SMALL:
        return "Some linears are so small that full precision is faster on a CPU, unless many clips run at once."
    return None


def prepare(weight: QuantizedWeight) -> Prepared:
    """Lay the two ranges out for oneDNN; codes are decoded to a byte each here."""
    n = weight.split.n_outlier
    outlier_codes, normal_codes = weight.split.ranges(weight.decoded.codes)
    normal = _product(normal_codes, weight.scale[:, 1], weight.codec.high)
    outlier = _product(outlier_codes, weight.scale[:, 0], weight.codec.high) if n else None
    shift = None if weight.zero is None else weight.scale * weight.zero.float()  # [N, 2]

    def multiply(tokens: Tokens, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        codes, scale, sums = tokens
        out = normal(codes[:, n:]).mul_(scale[:, 1:])
        if outlier is not None:
            out.addcmul_(outlier(codes[:, :n]), scale[:, :1])
        if shift is not None:
            out.addmm_(scale * sums, shift.T, alpha=-1)
        if bias is not None:
            out.add_(bias.float())
        return out.to(dtype)

    return sharing(weight, multiply)


def _product(codes: Tensor, scale: Tensor, high: int) -> Product:
    if high <= SAFE or sums_exactly():
        return _byte_product(codes, scale)
    return _whole_float_product(codes, scale)


def _byte_product(codes: Tensor, scale: Tensor) -> Product:
    packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    zeros = torch.zeros(len(codes), dtype=torch.int64)
    scale = scale.contiguous()

    def product(x: Tensor) -> Tensor:
        unsigned = x.view(torch.uint8) ^ 128
        return torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return product


def _whole_float_product(codes: Tensor, scale: Tensor) -> Product:
    pieces = codes.split(EXACT_COLUMNS, dim=1)

    def product(x: Tensor) -> Tensor:
        first, *others = (
            F.linear(a.float(), b.float()) for a, b in zip(x.split(EXACT_COLUMNS, dim=1), pieces, strict=True)
        )
        total = first.int()
        for other in others:
            total += other.int()
        return total.float().mul_(scale)

    return product


@cache
def sums_exactly() -> bool:
    """Whether oneDNN's products of the largest 8-bit codes do not saturate on this processor."""
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    return bool((_byte_product(codes, torch.ones(16))(codes[:1]) == 64 * 127 * 127).all())


CPU = Backend("cpu", refuses, prepare, caveat=_caveat)

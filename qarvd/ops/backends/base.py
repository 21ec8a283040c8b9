"""What a backend of the linear is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import library
from ..values import Prepared, QuantizedActivation, Tokens
from ..weight import QuantizedWeight


@dataclass(frozen=True)
class Backend:
    """One way to run the linear; all that allocates or loads happens in `prepare`."""

    name: str
    refuses: Callable[[QuantizedWeight], str | None]
    """Why it can't run this weight, or None."""
    prepare: Callable[[QuantizedWeight], Prepared]
    """Must not keep the weight itself, which keeps what this returns."""
    caveat: Callable[[QuantizedWeight], str | None] = lambda weight: None
    """What the user should be told once, such as that it will be slower than full precision."""


def quantize(x: Tensor, weight: QuantizedWeight, guard: float) -> QuantizedActivation:
    """`x` [..., in] for linears with the split of `weight` and at most this guard."""
    tokens = library.quantize_activation(x, weight.columns, guard)
    return QuantizedActivation(tokens, x.shape, x.dtype)


Multiply = Callable[[Tokens, Tensor | None, torch.dtype], Tensor]
"""Quantized tokens, a bias and a dtype -> [M, out] of that dtype."""


def decoding(weight: QuantizedWeight) -> Multiply:
    """The product by the ops, of codes that are decoded at each call."""
    packed, plain = weight.packed, weight.with_codes(weight.codes)

    def multiply(tokens: Tokens, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        decoded = plain._replace(codes=library.decode_weight(packed))
        return library.dual_scale_linear(tokens, decoded, bias, dtype)

    return multiply


def sharing(weight: QuantizedWeight, multiply: Multiply) -> Prepared:
    """A linear whose tokens are quantized as `library.quantize_activation` does it, so that linears can share them."""
    columns, guard, outputs = weight.columns, weight.guard, weight.shape[0]

    def run_quantized(x: QuantizedActivation, bias: Tensor | None) -> Tensor:
        return multiply(x.tokens, bias, x.dtype).view(*x.shape[:-1], outputs)

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        tokens = library.quantize_activation(x, columns, guard)
        return run_quantized(QuantizedActivation(tokens, x.shape, x.dtype), bias)

    return Prepared(run, run_quantized)


def is_traced(weight: QuantizedWeight) -> bool:
    """Whether a graph is being traced, in which nothing can be laid out: the tensors hold no numbers."""
    return type(weight.codes) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling()

"""SmoothQuant (arXiv 2211.10438): loud input channels divided by a factor, weights multiplied by it, then rounded.

The strength, which its authors choose for each model, is chosen for each layer here, by the error of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qarvd.ops.split import ChannelSplit
from qarvd.quantize.model import linear_groups

from .fake import FakeLinear, dynamic, stored_bytes
from .inputs import Samples
from .rounding import gram_of, rounded

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
TOKENS = 2048
"""On which a strength is tried."""


def quantize(
    tree: Any,
    num_layers: int,
    inputs: Mapping[str, Samples],
    bits: int,
    by_gptq: bool = False,
    on_layer: Callable[[str], object] = lambda name: None,
) -> int:
    """Quantize the tree's linears in place, to nearest or `by_gptq`; returns the bytes that they would take.

    Every input may be scaled, also where no norm or linear before it could take the factor for free.
    """
    stored = 0
    for names in linear_groups(num_layers):
        linears: list[nn.Linear] = [tree.get_submodule(name) for name in names]
        x = inputs[names[0]].x
        gram = gram_of(x) if by_gptq else None
        made = min((smoothed(linears, x, s, bits, gram) for s in STRENGTHS), key=lambda pair: pair[0])[1]
        for name, linear in zip(names, made, strict=True):
            tree.set_submodule(name, linear)
            stored += stored_bytes(linear.weight, bits, 0)
            on_layer(name)
    return stored


def smoothed(
    linears: Sequence[nn.Linear], x: Tensor, strength: float, bits: int, gram: Tensor | None = None
) -> tuple[float, list[FakeLinear]]:
    """What quantizing linears that read one input [samples, tokens, in] does to their outputs, and the linears made.

    It is their squared error over their square, summed over linears, on every so many tokens. With the inputs' `gram`
    [in, in] they are rounded by GPTQ.
    """
    factor = smoothness(x, [linear.weight for linear in linears], strength)
    split, transform = ChannelSplit(len(factor)), torch.diag(1 / factor)
    some = x.flatten(0, 1)
    some = some[:: max(1, len(some) // TOKENS)]
    smoothed_gram = None if gram is None else transform @ gram @ transform
    error, made = 0.0, []
    for linear in linears:
        weight = rounded(linear.weight.float() * factor, split, bits, smoothed_gram)
        made.append(FakeLinear(weight, linear.bias, dynamic(split), transform))
        expected = linear(some)
        error += float((made[-1](some) - expected).square().sum() / expected.square().sum())
    return error, made


def smoothness(x: Tensor, weights: Sequence[Tensor], strength: float = 0.5) -> Tensor:
    """Factor of each input channel (equation 4) from inputs [samples, tokens, in] and weights [out, in]: [in]."""
    loud = x.abs().amax((0, 1)).clamp_min(1e-5)
    steep = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp_min(1e-5)
    return loud**strength / steep ** (1 - strength)

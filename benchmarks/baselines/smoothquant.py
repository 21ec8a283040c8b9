"""SmoothQuant (arXiv 2211.10438): loud input channels divided by a factor, weights multiplied by it, then rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qarvd.ops.codecs import codec_of
from qarvd.ops.split import ChannelSplit
from qarvd.quantize.model import linear_groups
from qarvd.quantize.rounding import ROUNDING, Task

from .fake import FakeLinear, dynamic, stored_bytes
from .inputs import Samples


def quantize(
    tree: Any,
    num_layers: int,
    inputs: Mapping[str, Samples],
    bits: int,
    on_layer: Callable[[str], object] = lambda name: None,
) -> int:
    """Quantize the tree's linears in place; returns the bytes that they would take.

    Every input may be scaled, also where no norm or linear before it could take the factor for free.
    """
    stored = 0
    for names in linear_groups(num_layers):
        linears: list[nn.Linear] = [tree.get_submodule(name) for name in names]
        split = ChannelSplit(linears[0].in_features)
        factor = smoothness(inputs[names[0]].x, [linear.weight for linear in linears])
        for name, linear in zip(names, linears, strict=True):
            task = Task(linear.weight.float() * factor, split, codec_of(bits), symmetric=False)
            weight = ROUNDING["nearest"](task).dequantize()
            tree.set_submodule(name, FakeLinear(weight, linear.bias, dynamic(split), torch.diag(1 / factor)))
            stored += stored_bytes(weight, bits, split.n_outlier)
            on_layer(name)
    return stored


def smoothness(x: Tensor, weights: Sequence[Tensor], strength: float = 0.5) -> Tensor:
    """Factor of each input channel (equation 4) from inputs [samples, tokens, in] and weights [out, in]: [in]."""
    loud = x.abs().amax((0, 1)).clamp_min(1e-5)
    steep = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp_min(1e-5)
    return loud**strength / steep ** (1 - strength)

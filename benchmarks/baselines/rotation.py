"""Rotate the inputs of every linear by a Hadamard matrix, 256 wide where that divides, and round.

To nearest, that is what ComfyUI's stock int8_convrot does with 8 bits; by GPTQ and with random signs, it is in the
manner of QuaRot (arXiv 2404.00456), whose matrices are wider. With two scales, each range is rotated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qarvd.ops.split import ALIGNMENT, ChannelSplit
from qarvd.quantize.model import linear_groups
from qarvd.quantize.outliers import published_split

from .fake import FakeLinear, dynamic, stored_bytes
from .inputs import Samples
from .rounding import gram_of, rounded

WIDEST = 256


def rotation(split: ChannelSplit, signs: bool = False) -> Tensor:
    """Orthogonal [in, in], block-diagonal within each range of the split; with random `signs`, always the same ones.

    Without signs, one of its columns gathers the mean of the channels, which may stand out itself.
    """
    blocks = []
    for channels in (split.n_outlier, split.channels - split.n_outlier):
        width = next(w for w in (WIDEST >> i for i in range(9)) if channels % w == 0)
        block = torch.ones(1, 1)
        while len(block) < width:
            block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)]) / 2**0.5
        blocks += [block] * (channels // width)
    transform = split.square_to_logical(torch.block_diag(*blocks))
    if signs:
        transform *= torch.randint(2, (split.channels, 1), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return transform


def quantize(
    tree: Any,
    num_layers: int,
    bits: int,
    dual_scale: bool,
    inputs: Mapping[str, Samples] | None = None,
    on_layer: Callable[[str], object] = lambda name: None,
) -> int:
    """Quantize the tree's linears in place, by GPTQ where `inputs` are known; returns the bytes that they would take.

    `inputs` are needed of the first of linears that share one.
    """
    stored = 0
    for names in linear_groups(num_layers):
        linears: list[nn.Linear] = [tree.get_submodule(name) for name in names]
        if linears[0].in_features % ALIGNMENT:
            stored += sum(2 * linear.weight.numel() for linear in linears)
            continue
        split = published_split(*(x.weight for x in linears)) if dual_scale else ChannelSplit(linears[0].in_features)
        transform = rotation(split, signs=inputs is not None)
        gram = None if inputs is None else transform.T @ gram_of(inputs[names[0]].x) @ transform
        for name, linear in zip(names, linears, strict=True):
            weight = rounded(linear.weight.float() @ transform, split, bits, gram)
            tree.set_submodule(name, FakeLinear(weight, linear.bias, dynamic(split), transform))
            stored += stored_bytes(weight, bits, split.n_outlier)
            on_layer(name)
    return stored

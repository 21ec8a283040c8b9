"""Rotate the inputs of every linear by a Hadamard matrix, 256 wide where that divides, and round.

To nearest, that is what ComfyUI's stock int8_convrot does with 8 bits; by GPTQ, what QuaRot (arXiv 2404.00456) does
with 4. With two scales, each range is rotated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from qarvd.calibrate.stats import LayerStats
from qarvd.ops.codecs import codec_of
from qarvd.ops.split import ALIGNMENT, ChannelSplit
from qarvd.quantize import model as groups
from qarvd.quantize.model import LayerReport, linear_groups, quantize_group
from qarvd.quantize.outliers import published_split
from qarvd.quantize.search import search_split
from qarvd.recipe import Recipe

from .fake import FakeLinear, dynamic, stored_bytes
from .inputs import Samples
from .rounding import gram_of, rounded

WIDEST = 256


def rotation(split: ChannelSplit) -> Tensor:
    """Orthogonal [in, in], block-diagonal within each range of the split."""
    turn = torch.eye(split.channels)
    for channels in (split.order[: split.n_outlier], split.order[split.n_outlier :]):
        width = next(w for w in (WIDEST >> i for i in range(9)) if len(channels) % w == 0)
        block = torch.ones(1, 1)
        while len(block) < width:
            block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)]) / 2**0.5
        for part in channels.view(-1, width):
            turn[part[:, None], part] = block
    return turn


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
        turn = rotation(split)
        gram = None if inputs is None else turn.T @ gram_of(inputs[names[0]].x) @ turn
        for name, linear in zip(names, linears, strict=True):
            weight = rounded(linear.weight.float() @ turn, split, bits, gram)
            tree.set_submodule(name, FakeLinear(weight, linear.bias, dynamic(split), turn))
            stored += stored_bytes(weight, bits, split.n_outlier)
            on_layer(name)
    return stored


class Turned(nn.Module):
    """A linear whose input is multiplied by a matrix `turn` [in, in] first."""

    def __init__(self, linear: nn.Module, turn: Tensor) -> None:
        super().__init__()
        self.linear, self.turn = linear, turn

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.turn)


def quantize_turned(
    names: Sequence[str], linears: Sequence[nn.Linear], recipe: Recipe, bits: int, stats: LayerStats, *rest: Any
) -> Sequence[tuple[nn.Module | None, LayerReport]]:
    """`quantize_group` on inputs that are rotated, within each of the two ranges that it finds without that."""
    weights = [linear.weight for linear in linears]
    if weights[0].shape[1] % ALIGNMENT:
        return quantize_group(names, linears, recipe, bits, stats, *rest)  # kept as it is
    found = search_split(weights, stats, codec_of(bits), recipe.symmetric)
    turn = rotation(found.split)
    turned = [nn.Linear(w.shape[1], len(w)).requires_grad_(False) for w in weights]
    for made, linear in zip(turned, linears, strict=True):
        made.weight, made.bias = nn.Parameter(linear.weight @ turn, requires_grad=False), linear.bias
    with mock.patch.object(groups, "search_split", lambda *given: found):
        results = quantize_group(names, turned, recipe, bits, turned_stats(stats, turn), *rest)
    return [(None if linear is None else Turned(linear, turn), report) for linear, report in results]


def turned_stats(stats: LayerStats, turn: Tensor) -> LayerStats:
    """Of the inputs multiplied by `turn`."""
    wide = turn.to(stats.total.dtype)
    return replace(
        stats,
        gram=turn.T @ stats.gram @ turn,
        cross=turn.T @ stats.cross @ turn,
        total=stats.total @ wide,
        drift=stats.drift @ wide,
        samples=stats.samples @ turn,
    )

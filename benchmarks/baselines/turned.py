"""Ours on rotated inputs, as an ablation: no runtime of this repository rotates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

from torch import Tensor, nn

from qarvd.calibrate.stats import LayerStats
from qarvd.ops.codecs import codec_of
from qarvd.ops.split import ALIGNMENT
from qarvd.quantize import model as groups
from qarvd.quantize.model import LayerReport, quantize_group
from qarvd.quantize.search import search_split
from qarvd.recipe import Recipe

from .rotation import rotation


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
    """`quantize_group` on inputs that are rotated, within each of the two ranges that ours finds without that."""
    weights = [linear.weight for linear in linears]
    if weights[0].shape[1] % ALIGNMENT:
        return quantize_group(names, linears, recipe, bits, stats, *rest)  # kept as it is
    found = search_split(weights, stats, codec_of(bits), recipe.symmetric)
    turn = rotation(found.split, signs=True)
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

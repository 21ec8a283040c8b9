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


class Rotated(nn.Module):
    """A linear whose input is multiplied by a matrix `transform` [in, in] first."""

    def __init__(self, linear: nn.Module, transform: Tensor) -> None:
        super().__init__()
        self.linear, self.transform = linear, transform

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.transform)


def quantize_rotated(
    names: Sequence[str], linears: Sequence[nn.Linear], recipe: Recipe, bits: int, stats: LayerStats, *rest: Any
) -> Sequence[tuple[nn.Module | None, LayerReport]]:
    """`quantize_group` on inputs that are rotated, within each of the two ranges that ours finds without that."""
    weights = [linear.weight for linear in linears]
    if weights[0].shape[1] % ALIGNMENT:
        return quantize_group(names, linears, recipe, bits, stats, *rest)  # kept as it is
    found = search_split(weights, stats, codec_of(bits), recipe.symmetric)
    transform = rotation(found.split, signs=True)
    rotated = [nn.Linear(w.shape[1], len(w)).requires_grad_(False) for w in weights]
    for made, linear in zip(rotated, linears, strict=True):
        made.weight, made.bias = nn.Parameter(linear.weight @ transform, requires_grad=False), linear.bias
    with mock.patch.object(groups, "search_split", lambda *given: found):
        results = quantize_group(names, rotated, recipe, bits, rotated_stats(stats, transform), *rest)
    return [(None if linear is None else Rotated(linear, transform), report) for linear, report in results]


def rotated_stats(stats: LayerStats, transform: Tensor) -> LayerStats:
    """Of the inputs multiplied by `transform`."""
    wide = transform.to(stats.total.dtype)
    return replace(
        stats,
        gram=transform.T @ stats.gram @ transform,
        cross=transform.T @ stats.cross @ transform,
        total=stats.total @ wide,
        drift=stats.drift @ wide,
        samples=stats.samples @ transform,
    )

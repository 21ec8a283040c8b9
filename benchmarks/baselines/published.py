"""Q-ARVD as its authors released it (arXiv 2605.21072): percentile clips, static activations, AdaRound layer by layer.

Its activations are per tensor, with one quantizer for outlier and one for normal channels, and its frame weights are
off where a layer has two; `static=False` gives it the runtime's dynamic activations instead. Cross-attention's keys and
values and the text embedding are rounded to nearest, as released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qarvd.ops.split import ChannelSplit
from qarvd.quantize.grid import Grid
from qarvd.quantize.outliers import published_split
from qarvd.quantize.rounding.adaround import ITERATIONS, learn

from .fake import FakeLinear, Rounded, Static, dynamic, stored_bytes
from .inputs import Samples

PERCENTILES = (0.999, 0.9999, 0.99999)
BINS = 32_768
TOGETHER = 5
"""Calibration samples whose errors are averaged at once."""
BATCH = 8
"""Calibration samples of one AdaRound step."""
ACTIVATION_RATE = 4e-5


def weight_grid(columns: Tensor, n_outlier: int, bits: int) -> Grid:
    """The published grid of weights [rows, in], columns in kernel order: percentile clips by squared error."""
    parts = [
        _rows(columns[:, span], bits) for span in (slice(0, n_outlier), slice(n_outlier, None)) if span != slice(0, 0)
    ]
    if len(parts) == 1:
        parts *= 2
    (a, b), (c, d) = parts
    return Grid(0, 2**bits - 1, torch.stack([a, c], 1), torch.stack([b, d], 1))


def _rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    least = rows.new_full((len(rows),), 1e10)
    best = torch.zeros_like(least), torch.zeros_like(least)
    for share in PERCENTILES:
        top, bottom = rows.quantile(share, dim=1), rows.quantile(1 - share, dim=1)
        step = (top - bottom) / (2**bits - 1)
        zero = (-bottom / step).round()
        code = ((rows / step[:, None]).round() + zero[:, None]).clamp(0, 2**bits - 1)
        error = ((code - zero[:, None]) * step[:, None] - rows).square().mean(1)
        better = error < least
        best = torch.where(better, step, best[0]), torch.where(better, zero, best[1])
        least = torch.minimum(error, least)
    return best


def activation_range(samples: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Published step and zero point of one range's activations [samples, tokens, channels], weighted by sample."""
    least, best = 1e10, None
    bottom, top = samples.min(), samples.max()
    share_below = torch.histc(samples, BINS, float(bottom), float(top)).cumsum(0)
    share_below = share_below / share_below[-1]
    width = (top - bottom) / BINS
    for share in PERCENTILES:
        low = bottom + (torch.searchsorted(share_below, 1.0 - share).float() + 0.5) * width
        high = bottom + (torch.searchsorted(share_below, share).float() + 0.5) * width
        step = (high - low) / 255
        found = Static(step, (-low / step).round())
        error = (found(samples) - samples).square().flatten(1).mean(1) * weights
        score = torch.stack([part.mean() for part in error.split(TOGETHER)]).mean().item()
        if score < least:
            least, best = score, found
    assert best is not None
    return best.step, best.zero


@dataclass(frozen=True)
class Layer:
    """One linear to quantize with its calibration samples."""

    weight: Tensor
    bias: Tensor | None
    split: ChannelSplit
    samples: Tensor
    """Inputs [samples, tokens, in], in full precision."""
    ranged: Tensor
    """Inputs of the model whose weights are rounded, of which activation ranges are taken."""
    chunk_weights: Tensor
    """Of each sample."""

    def static(self) -> Static:
        """Activation quantizers of both ranges."""
        step, zero = torch.ones(self.split.channels), torch.zeros(self.split.channels)
        weights = torch.ones_like(self.chunk_weights) if self.split.n_outlier else self.chunk_weights
        ranges = zip(*map(self.split.ranges, (self.split.to_columns(self.ranged), step, zero)), strict=True)
        for values, its_step, its_zero in ranges:
            if len(its_step):
                its_step[:], its_zero[:] = activation_range(values, weights)
        return Static(self.split.to_logical(step), self.split.to_logical(zero))


def nearest(layer: Layer, bits: int) -> Tensor:
    """The weight rounded to the nearest point of the published grid, [out, in]."""
    columns, grid = _columns(layer, bits)
    scale, zero = grid.per_column(layer.split.n_outlier, layer.split.channels)
    codes = ((columns / scale).round() + zero).clamp(grid.low, grid.high)
    return _logical(layer, codes, grid)


def adaround(layer: Layer, bits: int, static: Static | None, iterations: int = ITERATIONS) -> tuple[Tensor, Rounded]:
    """The weight rounded by AdaRound, and the activation quantizer, whose steps are learned with it where static.

    Dynamic activations do not change as the weight is learned, so that each step takes the loss over all samples, by
    sums made beforehand; the released code draws a few samples a step.
    """
    columns, grid = _columns(layer, bits)
    split, n = layer.split, layer.split.n_outlier
    weights = torch.ones_like(layer.chunk_weights) if n else layer.chunk_weights
    if static is None:
        rounded = dynamic(layer.split)
        given, weighted = map(split.to_columns, (rounded(layer.samples), layer.samples * weights[:, None, None]))
        gram = (given * weights[:, None, None]).flatten(0, 1).T @ given.flatten(0, 1)
        cross = weighted.flatten(0, 1).T @ given.flatten(0, 1)
        unit, wanted = 2 / (len(layer.samples) * len(columns)), columns @ cross
        codes = learn(columns, grid, n, lambda value, iteration: (value @ gram - wanted) * unit, iterations)
        return _logical(layer, codes, grid), rounded

    generator = torch.Generator().manual_seed(0)
    samples, targets = split.to_columns(layer.samples), F.linear(layer.samples, layer.weight)
    part, zero = (torch.arange(layer.split.channels) >= n).long(), split.to_columns(static.zero)
    steps = split.to_columns(static.step)[[0, -1]].clone().requires_grad_()  # of the outlier and of the normal range
    optimizer = torch.optim.Adam([steps], ACTIVATION_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)

    def gradient(value: Tensor, iteration: int) -> Tensor:
        some = torch.randperm(len(samples), generator=generator)[:BATCH]
        with torch.enable_grad():
            value = value.detach().requires_grad_()
            ratio = samples[some] / steps[part]
            code = (ratio + (ratio.round() - ratio).detach() + zero).clamp(0, 255)
            error = F.linear((code - zero) * steps[part], value) - targets[some]  # [batch, tokens, out]
            (error.square().sum(1) * weights[some][:, None]).mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert value.grad is not None
        return value.grad

    codes = learn(columns, grid, n, gradient, iterations)
    return _logical(layer, codes, grid), Static(split.to_logical(steps.detach()[part]), static.zero)


def _columns(layer: Layer, bits: int) -> tuple[Tensor, Grid]:
    columns = layer.split.to_columns(layer.weight.detach().float())
    return columns, weight_grid(columns, layer.split.n_outlier, bits)


def _logical(layer: Layer, codes: Tensor, grid: Grid) -> Tensor:
    scale, zero = grid.per_column(layer.split.n_outlier, layer.split.channels)
    return layer.split.to_logical(scale * (codes - zero))


def quantize(
    tree: Any,
    names: Sequence[str],
    collect: Callable[[Any], dict[str, Samples]],
    chunk_weights: Sequence[float],
    bits: int,
    static: bool,
    iterations: int = ITERATIONS,
    on_layer: Callable[[str], object] = lambda name: None,
) -> int:
    """Quantize linears `names` of the tree in place; returns the bytes that they would take.

    `collect(tree)` gives the inputs of every linear, on calibration prompts; they are let go one by one.
    """
    full = collect(tree)
    weights = torch.tensor(list(chunk_weights))
    layers: dict[str, Layer] = {}
    linears: dict[str, nn.Linear] = {name: tree.get_submodule(name) for name in names}
    for name, linear in linears.items():
        split = published_split(linear.weight) if "block" in name else ChannelSplit(linear.in_features)
        found = full[name]
        layers[name] = Layer(linear.weight, linear.bias, split, found.x, found.x, weights[found.chunk])
        tree.set_submodule(name, FakeLinear(nearest(layers[name], bits), linear.bias, lambda x: x))
    ranged = collect(tree) if static else dict(full)
    full.clear()
    stored = 0
    for name in names:
        layer = layers.pop(name)
        layer = Layer(layer.weight, layer.bias, layer.split, layer.samples, ranged.pop(name).x, layer.chunk_weights)
        found = layer.static() if static else None
        if "cross_attn.k" in name or "cross_attn.v" in name or "text_embedding" in name:
            weight, rounded = nearest(layer, bits), dynamic(layer.split) if found is None else found
        else:
            weight, rounded = adaround(layer, bits, found, iterations)
        tree.set_submodule(name, FakeLinear(weight, layer.bias, rounded))
        stored += stored_bytes(layer.weight, bits, layer.split.n_outlier)
        on_layer(name)
    return stored

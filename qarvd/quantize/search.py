"""Choose how many outlier channels a layer gets by what they do to its output, not by a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibrate.stats import LayerStats
from ..ops import library
from ..ops.codecs import Codec
from ..ops.split import ALIGNMENT, ChannelSplit
from .fit import fit_grid
from .outliers import column_norms

MARGIN = 0.99
"""A further scale must bring the error below this much of the best so far: ties go to the simpler layer."""


@dataclass(frozen=True)
class Search:
    """The split that was chosen, and the relative output error of each count that was tried."""

    split: ChannelSplit
    errors: dict[int, float]
    """By number of outlier channels; of two rankings with one count, the better."""


def counts(channels: int, unit: int = ALIGNMENT) -> Iterator[int]:
    """Counts to try: every multiple of `unit` up to 256, then wider steps, up to half of the channels."""
    count = 0
    while count <= channels // 2:
        yield count
        count += max(unit, 1 << (count.bit_length() - 3) if count >= 256 else 0)


def search_split(
    weights: Sequence[Tensor], stats: LayerStats, codec: Codec, symmetric: bool, rotation: int = 0
) -> Search:
    """The outliers that linears `weights` [out, in] with one input share, of least frame-weighted output error.

    It is the error on the sampled tokens, quantized as the runtime does it, with weights rounded to nearest. Candidates
    are the first channels in the order of the weights' column norms (the published criterion), of their share of the
    output's energy, and of norm over activation: counts are multiples of 32, and the loud weights that need a scale of
    their own are best joined by channels whose activations are faint, for which a coarse step does least harm.
    """
    channels = weights[0].shape[1]
    power = (stats.gram.diagonal().double() / stats.weight).float().clamp_min(0)  # mean square of each input channel
    norms = column_norms(*weights)
    least_power = power.max().clamp_min(1e-30) * 1e-12  # a channel that is always zero
    keys = (norms, norms.square() * power, norms.square() / power.clamp_min(least_power))
    rankings = [key.argsort(descending=True, stable=True) for key in keys]
    best, least = ChannelSplit(channels, rotation=rotation), torch.inf
    errors: dict[int, float] = {}
    for count in counts(channels, max(ALIGNMENT, codec.group)):
        for ranking in rankings if count else rankings[:1]:
            split = ChannelSplit.of(channels, ranking[:count].tolist(), rotation)
            error = sum(output_error(w, stats, split, codec, symmetric) for w in weights) / len(weights)
            errors[count] = min(error, errors.get(count, torch.inf))
            if error < least * (MARGIN if count > best.n_outlier else 1):
                best, least = split, error
    return Search(best, errors)


def output_error(weight: Tensor, stats: LayerStats, split: ChannelSplit, codec: Codec, symmetric: bool) -> float:
    """Estimated squared error of the output over its square, both frame-weighted means over tokens."""
    n = split.n_outlier
    columns = split.to_columns(weight.detach().float())
    grid = fit_grid(columns, n, codec, symmetric, clips=COARSE)
    scale, zero = grid.per_column(n, split.channels)
    rounded = scale * (grid.all_nearest(columns / scale + zero) - zero)

    x, w = stats.samples, stats.sample_weight
    codes, steps, _ = library.quantize_activation(x, split.columns(x.device), 0.0)
    part = (torch.arange(split.channels, device=x.device) >= n).long()
    full = split.to_columns(x) @ columns.T
    off = (codes.float() * steps[:, part]) @ rounded.T - full
    return float((w @ off.square().sum(1)) / (w @ full.square().sum(1)).clamp_min(1e-30))


COARSE = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Clips that are enough to compare splits."""

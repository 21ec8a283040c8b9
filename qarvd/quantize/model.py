"""Quantize the linears of a Wan tree: which take part, which share an input, and what each one got."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import prod

import torch
from torch import Tensor, nn

from ..calibrate.stats import LayerStats
from ..errors import CheckpointError, SettingError
from ..float64 import float64_device
from ..ops.codecs import CODECS, Codec, codec_of
from ..ops.linear import QuantizedLinear
from ..ops.split import ALIGNMENT, ChannelSplit
from ..recipe import Recipe
from .grid import row_error
from .outliers import published_split
from .rounding import ROUNDING, Task
from .rounding.task import ENOUGH
from .search import search_split

WIDE = "16"
"""The bits of a linear that stays in full precision."""


@dataclass(frozen=True)
class LayerReport:
    """What one linear got."""

    name: str
    shape: tuple[int, int]
    n_outlier: int
    bits: str
    """Of its codes, such as "8", or "4g16" in groups of 16."""
    nbytes: int
    relative_error: float
    """Squared error of the dequantized weight over the squared weight."""
    output_error: float | None = None
    """Frame-weighted squared error of the output, beyond the best float weight's, over the squared output, if known."""
    tried: Mapping[int, float] | None = None
    """Estimated relative output error by number of outlier channels, where that was searched."""
    kept: str | None = None
    """Why it stayed in 16 bits, or None."""
    effects: Mapping[str, float] | None = None
    """Where a bit budget chose: estimated error of the prediction with these linears alone at so many `bits`."""


def linear_groups(num_layers: int) -> Iterator[tuple[str, ...]]:
    """Names of all linears that are quantized, those that read the same input together.

    All of the transformer blocks and the text embedding, as published; patch and time embeddings and the head stay.
    """
    yield ("text_embedding.0",)
    yield ("text_embedding.2",)
    for i in range(num_layers):
        block = f"blocks.{i}"
        yield tuple(f"{block}.self_attn.{name}" for name in "qkv")
        yield (f"{block}.self_attn.o",)
        yield (f"{block}.cross_attn.q",)
        yield tuple(f"{block}.cross_attn.{name}" for name in "kv")
        yield (f"{block}.cross_attn.o",)
        yield (f"{block}.ffn.0",)
        yield (f"{block}.ffn.2",)


def weight_bits(tree: nn.Module) -> float:
    """Stored bits per weight of the quantized linears, scales and outlier lists included; 16 where there are none."""
    weights = [module.weight for module in tree.modules() if isinstance(module, QuantizedLinear)]
    return sum(8 * w.nbytes for w in weights) / sum(prod(w.shape) for w in weights) if weights else 16.0


def codec_at(bits: str) -> Codec | None:
    """The codec that a report's `bits` name; None for full precision."""
    return None if bits == WIDE else CODECS[f"int{bits}"]


def choose_split(weights: Sequence[Tensor], recipe: Recipe, codec: Codec) -> ChannelSplit:
    """The outlier channels that linears with one input share, without knowing the input."""
    if recipe.outliers == "none":
        return ChannelSplit(weights[0].shape[1], rotation=recipe.rotation_of(weights[0].shape[1]))
    return replace(published_split(*weights, unit=max(ALIGNMENT, codec.group)), rotation=recipe.rotation)


@torch.no_grad()
def quantize_tree(
    tree: nn.Module, num_layers: int, recipe: Recipe, on_layer: Callable[[str], object] = lambda name: None
) -> list[LayerReport]:
    """Replace the tree's linears by quantized ones, in place and without data; each weight is freed at once.

    Raises CheckpointError for a weight with NaN or infinite values and SettingError for an unknown rounding method, one
    that needs data, or an unknown name among those to keep.
    """
    check_recipe(recipe, num_layers)
    reports = []
    for names in linear_groups(num_layers):
        linears = [linear_of(tree, name) for name in names]
        device = linears[0].weight.device
        for linear, report in quantize_group(names, linears, recipe, recipe_codec(recipe)):
            if linear is not None:
                tree.set_submodule(report.name, linear.to(device))
            reports.append(report)
            on_layer(report.name)
    return reports


def recipe_codec(recipe: Recipe) -> Codec:
    """How linears are stored where no bit budget chooses."""
    return codec_of(recipe.weight_bits, recipe.group)


def check_recipe(recipe: Recipe, num_layers: int) -> None:
    """Raise SettingError for an unknown rounding method or an unknown name among the linears to keep."""
    if recipe.rounding not in ROUNDING:
        raise SettingError(f"There is no rounding method {recipe.rounding!r}; choose from {', '.join(ROUNDING)}.")
    known = list(itertools.chain.from_iterable(linear_groups(num_layers)))
    for name in recipe.keep:
        if name not in known:
            near = (*get_close_matches(name, known, 1), known[0])[0]
            raise SettingError(
                f"The recipe keeps {name!r}, but no layer that is quantized has this name. Did you mean {near}?"
            )


def quantize_group(
    names: Sequence[str],
    linears: Sequence[nn.Linear],
    recipe: Recipe,
    codec: Codec | None,
    stats: LayerStats | None = None,
    clips: int = ENOUGH,
    sample_tokens: float = 1.0,
) -> list[tuple[QuantizedLinear | None, LayerReport]]:
    """Quantize linears that read one input, of which `stats` tells; None for one that stays in full precision.

    Without a `codec` all stay; `stats` are of so many `clips`, whose samples, one a model call, have `sample_tokens`.
    Fitting takes float64, and groups 8-bit floats, so for a device without them the results are on the CPU.
    """
    precise = float64_device(linears[0].weight.device)
    if linears[0].weight.device != precise and (stats is not None or (codec is not None and codec.group)):
        linears = [copy.deepcopy(linear).to(precise) for linear in linears]
        stats = None if stats is None else stats.to(precise)
    weights = [linear.weight for linear in linears]
    reason = "given 16 bits by the bit budget"
    if codec is not None:
        reason = reason_to_keep(names, weights[0].shape[1], recipe, codec)
    if codec is None or reason:
        return [
            (None, LayerReport(name, (len(w), w.shape[1]), 0, WIDE, 2 * w.numel(), 0.0, kept=reason))
            for name, w in zip(names, weights, strict=True)
        ]
    tried = None
    if recipe.outliers == "search" and stats is not None:
        search = search_split(weights, stats, codec, recipe.symmetric, recipe.rotation)
        split, tried = search.split, search.errors
    else:
        split = choose_split(weights, recipe, codec)
    results = []
    for name, linear in zip(names, linears, strict=True):
        correct = recipe.correct_bias and stats is not None and linear.bias is not None
        task = Task(linear.weight, split, codec, recipe.symmetric, stats, correct, clips, sample_tokens)
        quantized = ROUNDING[recipe.rounding](task)
        restored = quantized.dequantize()
        bias, output_error = linear.bias, None
        if stats is not None:
            output_error = relative_output_error(task, restored)
            if correct:
                bias = corrected_bias(linear, restored, stats)
        report = LayerReport(
            name,
            quantized.shape,
            split.n_outlier,
            codec.label,
            quantized.nbytes,
            relative_error(linear.weight, restored),
            output_error,
            tried,
        )
        results.append((QuantizedLinear(quantized, bias), report))
    return results


def corrected_bias(linear: nn.Linear, restored: Tensor, stats: LayerStats) -> Tensor:
    """The bias with which the quantized layer's mean output on its inputs is the full one's on its own, [out]."""
    mean, drift = stats.total / stats.weight, stats.drift / stats.weight
    weight = linear.weight.double()
    return (linear.bias.double() + weight @ (mean + drift) - restored.double() @ mean).to(linear.bias.dtype)


def relative_output_error(task: Task, restored: Tensor) -> float:
    """Frame-weighted squared error of the output, beyond that of the best float weight, over the squared output."""
    target, hessian = task.problem
    energy = row_error(task.weight.to(hessian.dtype), hessian).sum()
    return float(row_error(restored.to(hessian.dtype) - target, hessian).sum() / energy.clamp_min(1e-30))


def relative_error(weight: Tensor, other: Tensor) -> float:
    """Squared difference over the squared weight; 0 where both are all zeros."""
    weight, other = weight.float(), other.float()
    return float(((weight - other).square().sum() / weight.square().sum()).nan_to_num())


def reason_to_keep(names: Sequence[str], channels: int, recipe: Recipe, codec: Codec) -> str | None:
    """Why linears with one input cannot be quantized so, or None."""
    if set(names) & set(recipe.keep):
        return "kept by the recipe"
    unit = max(ALIGNMENT, codec.group)
    if channels % unit:
        return f"its {channels} input channels are not a multiple of {unit}"
    return None


def linear_of(tree: nn.Module, name: str) -> nn.Linear:
    """A full-precision linear of the tree. Raises CheckpointError where it is quantized or not finite."""
    linear = tree.get_submodule(name)
    if isinstance(linear, QuantizedLinear):
        raise CheckpointError(f"{name} is already quantized; start from the full-precision checkpoint.")
    assert isinstance(linear, nn.Linear), name
    if not torch.isfinite(linear.weight).all():
        raise CheckpointError(f"{name}.weight holds NaN or infinite values; the checkpoint is damaged.")
    return linear

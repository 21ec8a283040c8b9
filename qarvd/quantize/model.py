"""Quantize the linears of a Wan tree: which take part, which share an input, and what each one got."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, SettingError
from ..ops.codecs import codec_of
from ..ops.linear import QuantizedLinear
from ..ops.split import ALIGNMENT, ChannelSplit
from ..recipe import Recipe
from .outliers import published_split
from .rounding import ROUNDING


@dataclass(frozen=True)
class LayerReport:
    """What one linear got."""

    name: str
    shape: tuple[int, int]
    n_outlier: int
    bits: int
    nbytes: int
    relative_error: float
    """Squared error of the dequantized weight over the squared weight."""
    kept: str | None = None
    """Why it stayed in 16 bits, or None."""


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


def choose_split(weights: Sequence[Tensor], recipe: Recipe) -> ChannelSplit:
    """The outlier channels that linears with one input share."""
    if recipe.outliers == "none":
        return ChannelSplit(weights[0].shape[1])
    return published_split(*weights)


@torch.no_grad()
def quantize_tree(
    tree: nn.Module, num_layers: int, recipe: Recipe, on_layer: Callable[[str], object] = lambda name: None
) -> list[LayerReport]:
    """Replace the tree's linears by quantized ones, in place; every weight is freed as its codes are made.

    Raises CheckpointError for a weight with NaN or infinite values and SettingError for an unknown rounding method
    or an unknown name among those to keep.
    """
    if recipe.rounding not in ROUNDING:
        raise SettingError(f"There is no rounding method {recipe.rounding!r}; choose from {', '.join(ROUNDING)}.")
    if unknown := set(recipe.keep).difference(*linear_groups(num_layers)):
        raise SettingError(f"The recipe keeps {sorted(unknown)}, which are not among this model's quantized linears.")
    codec = codec_of(recipe.weight_bits)
    reports = []
    for names in linear_groups(num_layers):
        linears = [_linear(tree, name) for name in names]
        weights = [linear.weight for linear in linears]
        reason = _reason_to_keep(names, weights[0], recipe)
        split = None if reason else choose_split(weights, recipe)
        for name, linear in zip(names, linears, strict=True):
            weight = linear.weight
            if split is None:
                shape = (weight.shape[0], weight.shape[1])
                reports.append(LayerReport(name, shape, 0, 16, 2 * weight.numel(), 0.0, reason))
            else:
                quantized = ROUNDING[recipe.rounding](weight, split, codec)
                error = relative_error(weight, quantized.dequantize())
                tree.set_submodule(name, QuantizedLinear(quantized, linear.bias))
                n, size = split.n_outlier, quantized.nbytes
                reports.append(LayerReport(name, quantized.shape, n, codec.bits, size, error))
            on_layer(name)
    return reports


def relative_error(weight: Tensor, other: Tensor) -> float:
    """Squared difference over the squared weight; 0 where both are all zeros."""
    weight, other = weight.float(), other.float()
    return float(((weight - other).square().sum() / weight.square().sum()).nan_to_num())


def _reason_to_keep(names: Sequence[str], weight: Tensor, recipe: Recipe) -> str | None:
    if set(names) & set(recipe.keep):
        return "kept by the recipe"
    if weight.shape[1] % ALIGNMENT:
        return f"its {weight.shape[1]} input channels are not a multiple of {ALIGNMENT}"
    return None


def _linear(tree: nn.Module, name: str) -> nn.Linear:
    linear = tree.get_submodule(name)
    if isinstance(linear, QuantizedLinear):
        raise CheckpointError(f"{name} is already quantized; start from the full-precision checkpoint.")
    assert isinstance(linear, nn.Linear), name
    if not torch.isfinite(linear.weight).all():
        raise CheckpointError(f"{name}.weight holds NaN or infinite values; the checkpoint is damaged.")
    return linear

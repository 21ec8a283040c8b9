"""What files and caches of Wan2.1-1.3B and 14B take, counted from tensors of their real shapes, which hold nothing.

Files are counted by recipe: every tensor that a file of that recipe has, but not its header (under 1 MB). Caches are
counted at their fullest, for a video of 832 x 480 pixels in chunks of 3 latent frames. A stream holds the file's
tensors and one cache, and beside them what a step computes with, the text encoder and the VAE, which are not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from machine.tables import markdown
from torch import Tensor

from qarvd.checkpoint.quantized import write_linear
from qarvd.ops.split import ALIGNMENT, ChannelSplit
from qarvd.ops.weight import QuantizedWeight
from qarvd.quantize.model import linear_groups, recipe_codec
from qarvd.recipe import RECIPES, Recipe
from qarvd.stream.presets import CACHES, Preset
from qarvd.wan.config import WanConfig
from qarvd.wan.tree import WanTree

MODELS = {
    "Wan2.1-1.3B": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "Wan2.1-14B": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}
FRAME_TOKENS = 1560
"""Of a latent frame of 832 x 480 pixels."""
CHUNK_FRAMES = 3
WINDOWS = {
    "whole clip of 21 latent frames (81 frames)": (21, Preset(CHUNK_FRAMES, ())),
    "window of 12 latent frames, sink of 3": (None, Preset(CHUNK_FRAMES, (), window=12, sink=3)),
}
"""What a cache holds: latent frames of the clip (None: any number), and how it is streamed."""
DTYPE = torch.bfloat16


def quantized(shape: tuple[int, int], recipe: Recipe, outliers: int) -> QuantizedWeight:
    """A weight of that shape [out, in], with zero points if it can have them, whose tensors hold nothing."""
    out, channels = shape
    codec, meta = recipe_codec(recipe), torch.device("meta")
    codes = torch.empty(out, channels * codec.bits // 8, dtype=codec.stored, device=meta)
    scale = torch.empty(out, 2, device=meta)
    split = ChannelSplit(channels, tuple(range(outliers)), recipe.rotation_of(channels))
    if not codec.group:
        zero = None if recipe.symmetric else torch.empty(out, 2, dtype=torch.int8, device=meta)
        return QuantizedWeight(codec, split, codes, scale, zero)
    relative = torch.empty(out, channels // codec.group, dtype=torch.float8_e4m3fn, device=meta)
    table = torch.empty(len(codec.table), device=meta) if codec.has_table else None
    return QuantizedWeight(codec, split, codes, scale, None, relative, table)


def tensors(config: WanConfig, recipe: Recipe | None, share: float = 0.0) -> Iterator[Tensor]:
    """All tensors of a file by that recipe (None: in full precision), with a `share` of outlier channels."""
    with torch.device("meta"):
        state = WanTree(config).to(DTYPE).state_dict()
    names = {f"{name}.weight" for group in linear_groups(config.num_layers) for name in group}
    for key, tensor in state.items():
        if recipe is not None and key in names:
            out, channels = tensor.shape  # multiples of ALIGNMENT in every model here; others would stay in 16 bits
            outliers = int(channels * share) // ALIGNMENT * ALIGNMENT
            weight = quantized((out, channels), recipe, outliers)
            yield from (tensor for _, tensor in write_linear(key.removesuffix(".weight"), weight))
        else:
            yield tensor


def file_bytes(config: WanConfig, recipe: Recipe | None, share: float = 0.0) -> int:
    """Bytes of all `tensors`."""
    return sum(tensor.nbytes for tensor in tensors(config, recipe, share))


def cache_bytes(config: WanConfig, preset: Preset, frames: int | None, codec: str) -> int:
    """Bytes of a full cache: one layer's, filled with tensors that hold nothing, times the number of layers."""
    cache = preset.cache(frames, codec)
    size = preset.chunk_frames
    new = torch.empty(1, config.num_heads, size * FRAME_TOKENS, config.head_dim, dtype=DTYPE, device="meta")
    for start in range(0, 2 * cache.frames if frames is None else frames, size):
        cache.begin(start, size, FRAME_TOKENS)
        cache.attend(0, new, new, new)
    return cache.nbytes * config.num_layers


def file_table(models: dict[str, WanConfig]) -> list[list[str]]:
    """Files by recipe; what half of all channels being outliers, the most there can be, adds to them."""
    lines = [["model", "full, 16 bits", *map(str.upper, RECIPES), "outlier lists, at most"]]
    for name, config in models.items():
        sizes = [file_bytes(config, recipe) for recipe in (None, *RECIPES.values())]
        lists = file_bytes(config, RECIPES["w8a8"], 0.5) - file_bytes(config, RECIPES["w8a8"])
        lines.append([name, *(f"{size / 1e9:.2f} GB" for size in sizes), f"{lists / 1e6:.1f} MB"])
    return lines


def cache_table(models: dict[str, WanConfig]) -> list[list[str]]:
    """Caches by codec."""
    lines = [["model", "cache", *CACHES]]
    for name, config in models.items():
        for label, (frames, preset) in WINDOWS.items():
            sizes = [cache_bytes(config, preset, frames, codec) for codec in CACHES]
            lines.append([name, label, *(f"{size / 1e9:.2f} GB" for size in sizes)])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="the smaller model alone")
    args = parser.parse_args()
    models = dict(list(MODELS.items())[:1]) if args.smoke else MODELS
    print(f"Files:\n\n{markdown(file_table(models))}\n\nCaches of keys and values:\n\n{markdown(cache_table(models))}")


if __name__ == "__main__":
    main()

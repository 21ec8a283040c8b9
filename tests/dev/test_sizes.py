"""benchmarks/sizes.py counts what files and caches really take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sizes import CHUNK_FRAMES, DTYPE, FRAME_TOKENS, cache_bytes, file_bytes

from qarvd.checkpoint.model import Model, save
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES, Recipe
from qarvd.stream.presets import Preset
from qarvd.wan.config import WanConfig
from qarvd.wan.tree import WanTree

CONFIG = WanConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=32, text_len=4, freq_dim=32)


@pytest.mark.parametrize("recipe", [None, Recipe(4), *RECIPES.values()])
def test_a_file_holds_as_many_bytes_as_are_counted(recipe: Recipe | None, tmp_path: Path) -> None:
    tree = WanTree(CONFIG).to(DTYPE).requires_grad_(False)
    if recipe is not None:
        quantize_tree(tree, CONFIG.num_layers, replace(recipe, outliers="none").without_data())
    path = tmp_path / "model.safetensors"
    save(Model(tree, CONFIG, "self-forcing", {key: DTYPE for key in tree.state_dict()}), path)
    stored = sum(tensor.nbytes for tensor in load_file(path).values())
    assert stored == file_bytes(CONFIG, recipe)


def test_outliers_add_the_list_of_their_numbers() -> None:
    inputs = [32, 64, *([64] * 8 + [64, 128]) * CONFIG.num_layers]  # text embedding, attentions, ffn
    w4a8 = RECIPES["w4a8"]
    assert file_bytes(CONFIG, w4a8, 0.5) - file_bytes(CONFIG, w4a8) == sum(4 * (n // 2 // 32 * 32) for n in inputs)


@pytest.mark.parametrize(("frames", "sink"), [(6, 0), (None, 3)])
def test_a_cache_holds_as_many_bytes_as_are_counted(frames: int | None, sink: int) -> None:
    preset = Preset(CHUNK_FRAMES, (), window=None if frames else 9, sink=sink)
    held = frames or 9
    per_frame = 2 * CONFIG.num_layers * FRAME_TOKENS * CONFIG.dim
    assert cache_bytes(CONFIG, preset, frames, "16-bit") == held * per_frame * torch.bfloat16.itemsize
    older = held - sink - CHUNK_FRAMES
    scales = older * 2 * CONFIG.num_layers * FRAME_TOKENS * CONFIG.num_heads * 4
    offset = CONFIG.num_layers * CONFIG.dim * 4
    for codec, size in (("int8", 1), ("int4", 0.5)):
        counted = cache_bytes(CONFIG, preset, frames, codec)
        assert counted == (held - older) * per_frame * 2 + older * per_frame * size + scales + offset

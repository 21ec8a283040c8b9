"""The hostile twin computes what its model computes, and its planted channels are what the detector finds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from plant_outliers import plant

from qarvd.checkpoint.model import Model, load
from qarvd.demo.bundle import MODEL, embed
from qarvd.demo.prompts import split_prompts
from qarvd.ops.split import ALIGNMENT
from qarvd.quantize.model import linear_groups
from qarvd.quantize.outliers import published_split
from qarvd.stream.rollout import roll_out


def latents(model: Model, tree: Any, text: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
    frames = 3 * model.preset.chunk_frames
    chunks = roll_out(tree, model.config, model.preset, text, side, frames, range(len(text)))
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def test_the_twin_of_the_demo_model_is_the_same_function() -> None:
    model = load(MODEL)
    full: Any = model.tree.double()
    twin = copy.deepcopy(full)
    plant(twin)
    text = embed(split_prompts()[0][:2]).double()
    expected, found = (latents(model, tree, text, (8, 8)) for tree in (full, twin))
    assert expected.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-9
    assert not torch.equal(full.blocks[0].self_attn.q.weight, twin.blocks[0].self_attn.q.weight)


def test_the_detector_finds_what_was_planted_and_counts_differ_by_kind_and_depth() -> None:
    model = load(MODEL)
    twin = model.tree.float()
    planted = plant(twin)
    for names in linear_groups(model.config.num_layers):
        if names[0] in planted:
            split = published_split(*(twin.get_parameter(f"{name}.weight") for name in names))
            assert set(planted[names[0]]) <= set(split.outliers), names
            assert split.n_outlier - len(planted[names[0]]) < 2 * ALIGNMENT
    counts = {name: len(channels) for name, channels in planted.items()}
    assert len({counts[f"blocks.0.{kind}"] for kind in ("self_attn.q", "self_attn.o", "cross_attn.k", "ffn.0")}) == 4
    last = model.config.num_layers - 1
    assert counts["blocks.0.self_attn.o"] < counts[f"blocks.{last}.self_attn.o"]
    assert counts["blocks.0.cross_attn.o"] > counts[f"blocks.{last}.cross_attn.o"]

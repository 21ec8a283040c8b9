"""The hostile twin computes what its model computes, and its planted channels are what the detector finds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from plant_outliers import main, plant

from qarvd.checkpoint.model import Model, load
from qarvd.demo.bundle import MODEL, embed
from qarvd.demo.prompts import split_prompts
from qarvd.errors import SettingError
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


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 3.0, -4.0, float("inf"), float("nan")])
def test_a_factor_that_floating_point_would_round_is_refused(factor: float, model: Model) -> None:
    before = copy.deepcopy(model.tree.state_dict())
    with pytest.raises(SettingError, match="a power of two above 1"):
        plant(model.tree, factor)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.tree.state_dict().items())


def test_bad_arguments_are_answered_in_a_sentence(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = model_file.read_bytes(), tmp_path / "twin.safetensors"
    for arguments, expected in (
        ((model_file, model_file), "is also an input"),
        ((model_file, tmp_path / "twin.pt"), "must end in .safetensors"),
        ((tmp_path / "nowhere.safetensors", out), "There is no file"),
        ((model_file, out, "--factor", 3), "power of two"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert expected in captured.err and captured.err.count("\n") == 1
    assert model_file.read_bytes() == whole and not out.exists()
    assert main([str(model_file), str(out)]) == 0 and load(out).config == load(model_file).config


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

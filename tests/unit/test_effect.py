"""The measured effect of quantizing a layer is what swapping it in does to the prediction; budgets are met on disk."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qarvd.calibrate.calibration import Calibration
from qarvd.calibrate.calls import nothing_measured
from qarvd.calibrate.reach import full_reach
from qarvd.calibrate.rollout import Rollout, Setting, roll_out
from qarvd.checkpoint.model import Model, load, save
from qarvd.errors import SettingError
from qarvd.jobs.calibrate import identity
from qarvd.jobs.quantize import quantize
from qarvd.quantize.effect import option_errors
from qarvd.quantize.model import quantize_group
from qarvd.recipe import Recipe
from qarvd.stream.presets import PRESETS
from qarvd.stream.sampler import Denoiser
from qarvd.wan.forward import encode_text

from .conftest import CONFIG, tiny_model

SETTING = Setting(CONFIG, PRESETS["self-forcing"], (4, 4), 6)
PROMPTS = 24
WEIGHTS = ((1.5,) * 5, (0.5,) * 5)


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    embeddings = torch.randn(PROMPTS, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(2))
    return roll_out(SETTING, tiny_model().tree, embeddings, range(PROMPTS))[0]


def clean_latents(tree: torch.nn.Module, full: torch.nn.Module, rollout: Rollout) -> list[Tensor]:
    """The tree's predictions on the recorded calls, with the cache of the full-precision tree."""
    found = []
    with torch.no_grad():
        main = Denoiser(full, CONFIG, encode_text(full, CONFIG, rollout.embeddings), SETTING.cache())
        text = encode_text(tree, CONFIG, rollout.embeddings)
        for call in rollout.calls:
            other = replace(main, tree=tree, text=text, cache=copy.deepcopy(main.cache))
            velocity = other.velocity(call.latents, call.timestep, call.start)
            found.append(SETTING.preset.schedule.sigma(call.timestep) * velocity)
            main.velocity(call.latents, call.timestep, call.start)
    return found


@pytest.mark.parametrize("group", [("blocks.0.self_attn.o",), ("blocks.1.ffn.0",), ("blocks.0.cross_attn.q",)])
def test_the_effect_of_a_layer_is_that_of_swapping_it_in(group: tuple[str, ...], rollout: Rollout) -> None:
    full = tiny_model().tree
    found = option_errors(full, SETTING, [rollout], WEIGHTS, Recipe(weight_bits=4), (4,))
    swapped = copy.deepcopy(full)
    linears = [swapped.get_submodule(name) for name in group]
    for linear, report in quantize_group(group, linears, Recipe().without_data(), 4):  # type: ignore[arg-type]
        assert linear is not None
        swapped.set_submodule(report.name, linear)
    due = 0.0
    expected, got = (clean_latents(tree, full, rollout) for tree in (full, swapped))
    for call, a, b in zip(rollout.calls, expected, got, strict=True):
        if call is not rollout.calls[4]:  # the call that writes the cache predicts nothing that is kept
            due += WEIGHTS[call.chunk][call.step] * float((a - b).double().square().flatten(1).sum(1).mean())
    assert found[group][4] == pytest.approx(due, rel=0.5)


def test_more_bits_have_less_effect_everywhere(rollout: Rollout) -> None:
    found = option_errors(tiny_model().tree, SETTING, [rollout], WEIGHTS, Recipe())
    assert all(0 <= effect[8] < effect[4] for effect in found.values())


def calibration_of(model: Model, rollout: Rollout) -> Calibration:
    errors = torch.rand(8, 2, 2, generator=torch.Generator().manual_seed(0)).double().triu()
    about = (identity(model), model.preset_name, SETTING.size, SETTING.frames)
    return Calibration(*about, (rollout,), errors, full_reach(2), nothing_measured(SETTING))


@pytest.mark.parametrize("target", ["250KB", "300KB", "6 bits", "9.5 bits"])
def test_a_target_is_met_on_disk(target: str, rollout: Rollout, tmp_path: Path) -> None:
    model = tiny_model()
    made, reports = quantize(model, Recipe(target=target), calibration_of(model, rollout))
    save(made, tmp_path / "m.safetensors")
    if "bits" in target:
        weights = sum(r.shape[0] * r.shape[1] for r in reports)
        assert 8 * sum(r.nbytes for r in reports) <= float(target.split()[0]) * weights
    else:
        assert (tmp_path / "m.safetensors").stat().st_size <= int(target[:-2]) * 1000
    assert len({r.bits for r in reports}) > 1
    assert all(r.effects is None or set(r.effects) == {4, 8} for r in reports)
    load(tmp_path / "m.safetensors")


def test_an_impossible_target_says_what_is_possible(rollout: Rollout) -> None:
    model = tiny_model()
    with pytest.raises(SettingError, match="ask for a larger size"):
        quantize(model, Recipe(target="3 bits"), calibration_of(model, rollout))
    with pytest.raises(SettingError, match="cannot be met"):
        quantize(tiny_model(), Recipe(target="1KB"), calibration_of(model, rollout))

"""The measured effect of quantizing a layer is what swapping it in does to the prediction; budgets are met on disk."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.model import CONFIG, tiny_model
from torch import Tensor

from qarvd.calibrate.calibration import Calibration
from qarvd.calibrate.call_sensitivity import nothing_measured
from qarvd.calibrate.horizon import full_horizon
from qarvd.calibrate.rollout import Rollout, Setting, roll_out
from qarvd.checkpoint.model import Model, load, save
from qarvd.errors import CheckpointError, SettingError
from qarvd.jobs.calibrate import identity
from qarvd.jobs.quantize import MEASURING, QUANTIZING, quantize
from qarvd.ops.codecs import CODECS
from qarvd.quantize.model import quantize_group
from qarvd.quantize.sensitivity import CALLS, draw_calls, option_errors
from qarvd.recipe import Recipe
from qarvd.stream.presets import PRESETS
from qarvd.stream.sampler import Denoiser
from qarvd.wan.forward import encode_text

SETTING = Setting(CONFIG, PRESETS["self-forcing"], (4, 4), 6)
PROMPTS = 24
NEAREST = Recipe(rounding="nearest")
"""The fastest one."""
WEIGHTS = ((1.5,) * 5, (0.5,) * 5)
INT4 = CODECS["int4"]
ALL = {"3g64", "3g16", "4", "4g64", "4g16", "6g64", "8"}
"""The bits that a budget chooses among."""


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
    found = option_errors(full, SETTING, [rollout], WEIGHTS, Recipe(weight_bits=4), (INT4,))
    swapped = copy.deepcopy(full)
    linears = [swapped.get_submodule(name) for name in group]
    for linear, report in quantize_group(group, linears, Recipe().without_data(), INT4):  # type: ignore[arg-type]
        assert linear is not None
        swapped.set_submodule(report.name, linear)
    expected = 0.0
    full_latents, swapped_latents = (clean_latents(tree, full, rollout) for tree in (full, swapped))
    for call, a, b in zip(rollout.calls, full_latents, swapped_latents, strict=True):
        if call is not rollout.calls[4]:  # the call that writes the cache predicts nothing that is kept
            expected += WEIGHTS[call.chunk][call.step] * float((a - b).double().square().flatten(1).sum(1).mean())
    assert found[group]["4"] == pytest.approx(expected, rel=0.5)


def test_effects_grow_with_the_weight_of_their_chunk(rollout: Rollout) -> None:
    one, two, three = (
        option_errors(tiny_model().tree, SETTING, [rollout], ((w,) * 5, (0.5,) * 5), Recipe(), (INT4,))
        for w in (1, 2, 3)
    )
    for names, effect in two.items():
        assert one[names]["4"] < 0.95 * effect["4"]
        assert one[names]["4"] + three[names]["4"] == pytest.approx(2 * effect["4"])


def test_more_bits_have_less_effect_everywhere(rollout: Rollout) -> None:
    found = option_errors(tiny_model().tree, SETTING, [rollout], WEIGHTS, Recipe(rotation=64))
    assert all(0 <= e["8"] < e["6g64"] < e["4g16"] < e["3g16"] for e in found.values() if "6g64" in e)
    assert all(set(e) == ALL if "6g64" in e else set(e) == {"3g16", "4", "4g16", "8"} for e in found.values())
    assert any("6g64" in e for e in found.values())


def test_an_effect_that_is_not_finite_names_the_layer_where_that_began(rollout: Rollout) -> None:
    tree = tiny_model().tree
    tree.get_parameter("blocks.1.ffn.2.bias")[3] = torch.inf
    with pytest.raises(CheckpointError, match=r"output of blocks\.1\.ffn\.2 became NaN"):
        option_errors(tree, SETTING, [rollout], WEIGHTS, Recipe())
    assert not any(module._forward_hooks for module in tree.modules())
    tree = tiny_model().tree
    tree.get_submodule("blocks.1.ffn.0").register_full_backward_hook(lambda _, given, __: (given[0] * torch.nan,))
    with pytest.raises(CheckpointError, match=r"effect of quantizing blocks\.1\.\S+ became NaN"):
        option_errors(tree, SETTING, [rollout], WEIGHTS, Recipe())


def test_few_calls_are_all_measured_at_their_own_weights() -> None:
    weights = [0.5, 0.0, 3.0] * 18
    assert draw_calls(weights, torch.Generator()) == weights


def test_of_many_calls_as_many_are_drawn_as_their_weights_say() -> None:
    """Four steps a chunk, the last two alone with weight: a fixed stride would meet some steps never."""
    weights = [0.01, 0.02, 1.0, 3.0] * 7 * 16
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_calls(weights, generator) for _ in range(200)])  # [draws, calls]
    assert all(1 <= (row > 0).sum() <= CALLS for row in drawn)
    torch.testing.assert_close(drawn.sum(1), torch.full((200,), sum(weights)))
    by_step = drawn.view(200, -1, 4).sum(1).mean(0)
    expected = torch.tensor(weights).view(-1, 4).sum(0)
    assert by_step.tolist() == pytest.approx(expected.tolist(), rel=0.15, abs=1)


def calibration_of(model: Model, rollout: Rollout) -> Calibration:
    errors = torch.rand(8, 2, 2, generator=torch.Generator().manual_seed(0)).double().triu()
    about = (identity(model), model.preset_name, SETTING.size, SETTING.frames)
    return Calibration(*about, (rollout,), errors, full_horizon(2), nothing_measured(SETTING))


@pytest.mark.parametrize("target", ["250KB", "300KB", "6 bits", "9.5 bits"])
def test_a_target_is_met_on_disk(target: str, rollout: Rollout, tmp_path: Path) -> None:
    model = tiny_model()
    made, reports = quantize(model, replace(NEAREST, target=target), calibration_of(model, rollout))
    save(made, tmp_path / "m.safetensors")
    if "bits" in target:
        weights = sum(r.shape[0] * r.shape[1] for r in reports)
        assert 8 * sum(r.nbytes for r in reports) <= float(target.split()[0]) * weights
    else:
        assert (tmp_path / "m.safetensors").stat().st_size <= int(target[:-2]) * 1000
    assert len({r.bits for r in reports}) > 1
    few = {"3g16", "4", "4g16", "8"}  # of inputs that groups of 64 do not divide
    assert all(r.kept or set(r.effects or ()) == (ALL if r.shape[1] % 64 == 0 else few) for r in reports)
    load(tmp_path / "m.safetensors")


def test_a_float32_checkpoint_is_counted_as_it_is_written(rollout: Rollout, tmp_path: Path) -> None:
    model = tiny_model()
    coarse, fine = (replace(model, dtypes=dict.fromkeys(model.dtypes, d)) for d in (torch.bfloat16, torch.float32))
    made = [quantize(m, replace(NEAREST, target="300KB"), calibration_of(m, rollout))[0] for m in copies(coarse, fine)]
    for number, found in enumerate(made):
        save(found, tmp_path / f"{number}.safetensors")
    sizes = [(tmp_path / f"{number}.safetensors").stat().st_size for number in range(2)]
    assert max(sizes) <= 300_000 and abs(sizes[1] - sizes[0]) < 20_000  # biases and norms alone differ
    notes: Any = [found.notes["budget"] for found in made]
    assert notes[1]["bytes"] >= 0.9 * notes[0]["bytes"]


def copies(*models: Model) -> list[Model]:
    return [replace(model, tree=copy.deepcopy(model.tree)) for model in models]


@pytest.mark.parametrize("recipe", [NEAREST, replace(NEAREST, target="6 bits")], ids=["plain", "with a target"])
def test_quantizing_may_be_stopped_before_any_model_call(recipe: Recipe, rollout: Rollout) -> None:
    calibration, heard = calibration_of(tiny_model(), rollout), []
    quantize(tiny_model(), recipe, calibration, on_call=heard.append)
    assert set(heard) == {QUANTIZING, *([MEASURING] if recipe.target else [])}
    assert heard.count(QUANTIZING) >= 3 * CONFIG.num_layers * len(rollout.calls)
    for stop in (0, 1, len(heard) // 2, len(heard) - 1):
        seen: list[str] = []

        def on_call(what: str, seen: list[str] = seen, stop: int = stop) -> None:
            seen.append(what)
            if len(seen) > stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize(tiny_model(), recipe, calibration, on_call=on_call)
        assert seen == heard[: stop + 1]


def test_an_impossible_target_says_what_is_possible(rollout: Rollout) -> None:
    model = tiny_model()
    with pytest.raises(SettingError, match="Ask for a larger size"):
        quantize(model, Recipe(target="3 bits"), calibration_of(model, rollout))
    with pytest.raises(SettingError, match="is too small"):
        quantize(tiny_model(), Recipe(target="1KB"), calibration_of(model, rollout))

"""ComfyUI's own formats: written, and read again, with the very codes and scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny.model import CONFIG, tiny_model
from torch import Tensor

from qarvd.checkpoint.model import Model, load, save
from qarvd.checkpoint.quantized import declared
from qarvd.checkpoint.stock import ASYM, TENSORWISE
from qarvd.errors import CheckpointError, SettingError
from qarvd.ops.hadamard import hadamard
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import OURS, RECIPES, Recipe

W4, W8 = RECIPES["w4a8"].in_format(ASYM), RECIPES["w8a8"].in_format(TENSORWISE)
FITTED = {
    "4 bits": W4,
    "4 bits, groups of 32": replace(W4, group=32),
    "6 bits": RECIPES["w6a8"].in_format(ASYM),
    "rotated 8 bits": W8,
    "8 bits": replace(W8, rotation=0),
}
NAME = "blocks.1.ffn.0"


def quantized(recipe: Recipe) -> Model:
    model = tiny_model()
    recipe = recipe.without_data()
    quantize_tree(model.tree, CONFIG.num_layers, recipe)
    return replace(model, recipe=recipe)


def linears(model: Model) -> dict[str, QuantizedLinear]:
    return {name: m for name, m in model.tree.named_modules() if isinstance(m, QuantizedLinear)}


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def decoded(tensors: dict[str, Tensor], name: str) -> Tensor:
    """A weight as the formats' own definitions have it, in plain steps."""
    marker = declared(tensors[f"{name}.comfy_quant"])
    codes = tensors[f"{name}.weight"]
    if marker["format"] == TENSORWISE:
        weight = codes.float() * tensors[f"{name}.weight_scale"]
        width = marker["convrot_groupsize"] if marker.get("convrot") else 1
    else:
        relative = tensors[f"{name}.weight_s_rel"].float().repeat_interleave(marker["group_size"], dim=1)
        columns, raw = relative.shape[1], codes.view(torch.uint8).int()
        low = torch.stack([raw & 15, raw >> 4], dim=2).flatten(1)[:, :columns]  # the first half byte is even columns'
        if codes.shape[1] * 2 == columns:
            value = tensors[f"{name}.weight_codebook"][low]
        else:
            high = raw[:, columns // 2 :, None] >> torch.tensor([0, 2, 4, 6]) & 3
            value = (low + 16 * high.flatten(1) - 32).float()
        weight = (value * relative).round().clamp(-127, 127) * tensors[f"{name}.weight_s_channel"][:, None]
        width = marker["convrot_groupsize"]
    blocks = weight.unflatten(1, (-1, width)).double()
    return (blocks @ hadamard(width, weight.device, torch.float64)).flatten(1).float() if width > 1 else weight


@pytest.mark.parametrize("recipe", FITTED.values(), ids=FITTED)
def test_what_is_written_is_what_was_fitted_and_what_is_read(recipe: Recipe, tmp_path: Path) -> None:
    model, path = quantized(recipe), tmp_path / "stock.safetensors"
    save(model, path)
    tensors, metadata = contents(path)
    assert not [key for key in tensors if key.endswith(("_outlier_idx", "_zero", "_rotation", "_group_scale"))]
    assert json.loads(metadata["config"])["transformer"]["causal_ar"] is True
    again = load(path)
    assert again.recipe == model.recipe and again.preset_name == model.preset_name
    found, expected = linears(again), linears(model)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, linear in expected.items():
        assert declared(tensors[f"{name}.comfy_quant"])["format"] == recipe.format
        weight, read = linear.weight, found[name].weight
        assert torch.equal(read.decoded.codes, weight.decoded.codes) and torch.equal(read.scale, weight.scale)
        torch.testing.assert_close(decoded(tensors, name), weight.dequantize(), rtol=0, atol=1e-6)
    save(again, tmp_path / "again.safetensors")
    assert contents(tmp_path / "again.safetensors")[0].keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in contents(tmp_path / "again.safetensors")[0].items())


def test_a_weight_of_a_stock_grid_can_also_be_saved_in_our_format(tmp_path: Path) -> None:
    model = quantized(W4)
    save(model, tmp_path / "ours.safetensors", OURS)
    for name, linear in linears(load(tmp_path / "ours.safetensors")).items():
        assert torch.equal(linear.weight.dequantize(), linears(model)[name].weight.dequantize())


@pytest.mark.parametrize(
    ("recipe", "format", "why"),
    [
        (RECIPES["w4a8"], ASYM, r"has 4-bit weights in groups of 16, rotated by 64, 32 outlier channels and no zero"),
        (Recipe(8, outliers="none"), TENSORWISE, r"has 8-bit weights, 0 outlier channels and zero points"),
        (Recipe(3, group=16, outliers="none"), ASYM, r"has 3-bit weights in groups of 16, 0 outlier channels"),
        (W4, TENSORWISE, r"would be stored as asym_w4a8_int8\. For a file in int8_tensorwise, quantize it"),
    ],
    ids=["outliers", "zero points", "three bits", "another format"],
)
def test_what_a_format_cannot_hold_is_refused(recipe: Recipe, format: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "stock.safetensors"
    with pytest.raises(SettingError, match=why):
        save(quantized(recipe), path, format)
    assert not path.exists()


def test_a_full_precision_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"are in full precision\. For a file in int8_tensorwise, quantize it"):
        save(tiny_model(), tmp_path / "stock.safetensors", TENSORWISE)


def changed(path: Path, recipe: Recipe, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A file as others write them, without our metadata, with something changed."""
    save(quantized(recipe), path)
    tensors, metadata = contents(path)
    change(tensors)
    save_file(tensors, path, {"config": metadata["config"]})
    return path


def marked(tensors: dict[str, Tensor], **about: object) -> None:
    told = declared(tensors[f"{NAME}.comfy_quant"]) | about
    tensors[f"{NAME}.comfy_quant"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


def nested(tensors: dict[str, Tensor]) -> None:
    told = declared(tensors[f"{NAME}.comfy_quant"])
    about = {"format": told.pop("format"), "params": told}
    tensors[f"{NAME}.comfy_quant"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)


def wide(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NAME}.weight_s_rel"] = tensors[f"{NAME}.weight_s_rel"].float()


def single(tensors: dict[str, Tensor]) -> None:
    """One scale for the whole tensor."""
    tensors[f"{NAME}.weight_scale"] = torch.tensor(0.01)


@pytest.mark.parametrize(
    ("recipe", "change"),
    [(W4, nested), (W4, wide), (W4, lambda t: marked(t, group_size=16)), (W8, nested), (W8, single)],
    ids=["nested marker", "wide scales", "as it is", "nested marker of 8 bits", "one scale"],
)
def test_files_of_others_are_read(recipe: Recipe, change: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    path = changed(tmp_path / "other.safetensors", recipe, change)
    found = load(path, "self-forcing")
    weight, tensors = linears(found)[NAME].weight, contents(path)[0]
    if change is single:
        tensors[f"{NAME}.weight_scale"] = torch.full((weight.shape[0], 1), 0.01)
    if change is nested:
        told = declared(tensors[f"{NAME}.comfy_quant"])
        marked(tensors, **told["params"])
    torch.testing.assert_close(decoded(tensors, NAME), weight.dequantize(), rtol=0, atol=1e-6)
    save(found, tmp_path / "ours.safetensors")
    again = linears(load(tmp_path / "ours.safetensors"))[NAME].weight
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.update({f"{NAME}.weight_correction": torch.zeros(2)}), "has zero points"),
        (lambda t: t.pop(f"{NAME}.weight_s_channel"), r"lacks blocks\.1\.ffn\.0\.weight_s_channel"),
        (lambda t: t.update({f"{NAME}.weight_s_rel": t[f"{NAME}.weight_s_rel"].half()}), "stores it as"),
        (lambda t: t[f"{NAME}.weight_s_channel"].fill_(-1), "finite and not negative"),
        (lambda t: t[f"{NAME}.weight_codebook"].copy_(t[f"{NAME}.weight_codebook"].flip(0)), "finite and ascend"),
        (lambda t: marked(t, group_size=8), "can't be read"),
        (lambda t: marked(t, convrot_groupsize=4), "rotated in blocks of 4"),
        (lambda t: marked(t, convrot_groupsize=32), "rotated in blocks of 32"),
        (lambda t: marked(t, convrot_groupsize=256), "rotated in blocks of 256"),
        (lambda t: marked(t, group_size=10**6), "do not fit together"),
        (lambda t: t.update({f"{NAME}.comfy_quant": t[f"{NAME}.comfy_quant"][:0]}), "does not name a format"),
        (lambda t: t.update({f"{NAME}.comfy_quant": torch.full((10**5,), 91, dtype=torch.uint8)}), "does not name"),
        (lambda t: marked(t, convrot_groupsize="wide"), "can't be read"),
        (lambda t: marked(t, group_size=float("inf")), "can't be read"),
        (lambda t: marked(t, params=[3], group_size=0), "can't be read"),
        (lambda t: t.update({f"{NAME}.weight_s_channel": torch.ones(7)}), "can't be read"),
        (lambda t: t.update({f"{NAME}.weight_codebook": torch.ones(3)}), "can't be read"),
        (lambda t: t.update({f"{NAME}.weight_s_rel": t[f"{NAME}.weight_s_rel"][0]}), "can't be read"),
        (lambda t: marked(t, format="nvfp4"), "stored as 'nvfp4'; qarvd reads its own formats and asym_w4a8_int8 and"),
    ],
)
def test_what_cannot_run_or_is_damaged_is_refused_in_a_sentence(
    change: Callable[[dict[str, Tensor]], Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=why):
        load(changed(tmp_path / "other.safetensors", W4, change), "self-forcing")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.update({f"{NAME}.weight_scale": torch.ones(7, 1)}), "can't be read"),
        (lambda t: t.update({f"{NAME}.weight_scale": t[f"{NAME}.weight_scale"].half()}), "stores it as torch.float32"),
        (lambda t: t.update({f"{NAME}.weight": t[f"{NAME}.weight"].view(torch.uint8)}), "stores it as torch.int8"),
        (lambda t: t.pop(f"{NAME}.weight_scale"), "lacks"),
        (lambda t: marked(t, convrot_groupsize=256), "rotated in blocks of 256"),
    ],
)
def test_damaged_8_bit_files_are_refused_in_a_sentence(
    change: Callable[[dict[str, Tensor]], Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=why):
        load(changed(tmp_path / "other.safetensors", W8, change), "self-forcing")


def zeros(tensors: dict[str, Tensor]) -> None:
    """As quantizers store rows and groups without a weight."""
    tensors[f"{NAME}.weight_s_rel"].view(torch.uint8)[3, 1] = 0
    tensors[f"{NAME}.weight_s_channel"][5] = 0
    tensors[f"{NAME}.comfy_quant"] = tensors[f"{NAME}.comfy_quant"][None]


def test_scales_of_zero_are_read_and_saved_in_either_format(tmp_path: Path) -> None:
    path = changed(tmp_path / "other.safetensors", W4, zeros)
    found, tensors = load(path, "self-forcing"), contents(path)[0]
    weight = linears(found)[NAME].weight
    torch.testing.assert_close(weight.dequantize(), decoded(tensors, NAME), rtol=0, atol=1e-6)
    for format in (OURS, ASYM):
        save(found, tmp_path / "again.safetensors", format)
        again = linears(load(tmp_path / "again.safetensors"))[NAME].weight
        assert torch.equal(again.dequantize(), weight.dequantize())


def test_a_stock_file_of_others_is_saved_in_its_own_format_unless_another_is_asked_for(tmp_path: Path) -> None:
    found = load(changed(tmp_path / "other.safetensors", W8, lambda tensors: None), "self-forcing")
    assert found.recipe is None
    save(found, tmp_path / "again.safetensors")
    assert declared(contents(tmp_path / "again.safetensors")[0][f"{NAME}.comfy_quant"])["format"] == TENSORWISE


@pytest.mark.parametrize("format", [ASYM, TENSORWISE])
def test_a_budget_may_leave_no_linear_in_the_format_that_the_recipe_names(format: str, tmp_path: Path) -> None:
    """Its layers are in either of ComfyUI's formats, by their bits."""
    other = {ASYM: W8, TENSORWISE: W4}[format]
    model = quantized(other)
    named = Recipe(8).in_format(format) if format == TENSORWISE else W4
    save(replace(model, recipe=replace(named, target="5 bits")), tmp_path / "budget.safetensors")
    assert linears(load(tmp_path / "budget.safetensors")).keys() == linears(model).keys()

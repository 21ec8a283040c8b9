"""The export for ComfyUI's own loader."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny.model import CONFIG, tiny_model

from qarvd.checkpoint.model import Model
from qarvd.checkpoint.tensorwise import FORMAT, save_tensorwise
from qarvd.errors import SettingError
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import Recipe

STOCK = Recipe(weight_bits=8, outliers="none", symmetric=True).without_data()


def quantized(recipe: Recipe) -> Model:
    model = tiny_model()
    quantize_tree(model.tree, CONFIG.num_layers, recipe)
    return replace(model, recipe=recipe)


def test_codes_times_scales_are_the_weights(tmp_path: Path) -> None:
    model = quantized(STOCK)
    path = tmp_path / "stock.safetensors"
    save_tensorwise(model, path)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    linears = {n: m for n, m in model.tree.named_modules() if isinstance(m, QuantizedLinear)}
    assert linears
    for name, linear in linears.items():
        codes, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        assert codes.dtype == torch.int8 and scale.shape == (len(codes), 1)
        assert torch.equal(codes.float() * scale, linear.weight.dequantize())
        assert json.loads(bytes(tensors[f"{name}.comfy_quant"].tolist())) == {"format": FORMAT}
    assert json.loads(metadata["config"])["transformer"]["causal_ar"] is True
    ours = [key for key in tensors if key.endswith(("weight_outlier_idx", "weight_zero"))]
    assert not ours


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(weight_bits=4, outliers="none", symmetric=True),
        Recipe(weight_bits=8, outliers="none"),
    ],
    ids=["four bits", "zero points"],
)
def test_what_the_format_cannot_hold_is_refused_by_name(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "stock.safetensors"
    with pytest.raises(SettingError, match=r"text_embedding\.\d has .* stock int8 recipe"):
        save_tensorwise(quantized(recipe.without_data()), path)
    assert not path.exists()


def test_a_full_precision_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="quantize it with the stock int8 recipe first"):
        save_tensorwise(tiny_model(), tmp_path / "stock.safetensors")

"""Files of the tiny model, quantized and changed, and how they are refused."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarvd.checkpoint.model import Model, load, save
from qarvd.errors import CheckpointError
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES

LAYER = "blocks.0.ffn.2"
"""A linear of the tiny model with outlier channels."""


@pytest.fixture(params=RECIPES)
def quantized(request: pytest.FixtureRequest, model: Model) -> Model:
    recipe = RECIPES[request.param].without_data()
    quantize_tree(model.tree, model.config.num_layers, recipe)
    return replace(model, recipe=recipe, notes={"layers": {LAYER: {"bits": recipe.weight_bits}}, "remark": "ä"})


@pytest.fixture
def quantized_file(quantized: Model, tmp_path: Path) -> Path:
    path = tmp_path / "quantized.safetensors"
    save(quantized, path)
    return path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def change(path: Path, tensors: Mapping[str, Tensor | None], about: Mapping[str, str] | None = None) -> Path:
    """Rewrite a file with some tensors replaced or (None) left out, without its checksum unless `about` brings one."""
    ours = json.loads(metadata(path)["qarvd"])
    ours.pop("checksum", None)
    merged = {**load_file(path), **tensors}
    kept = {key: t.clone().contiguous() for key, t in merged.items() if t is not None}
    save_file(kept, path, {**metadata(path), "qarvd": json.dumps(ours)} | dict(about or {}))
    return path


def refusal(path: Path, preset: str | None = None) -> str:
    """The sentence with which `path` is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(path, preset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert set(a) == set(b)
    for key, tensor in a.items():
        assert tensor.dtype == b[key].dtype and torch.equal(tensor, b[key]), key

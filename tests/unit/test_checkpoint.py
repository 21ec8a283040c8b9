"""Checkpoint files: written and read exactly, and refused in a sentence when something is wrong with them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qarvd.checkpoint import model as model_module
from qarvd.checkpoint.model import Model, load, save, state_tensors
from qarvd.checkpoint.quantized import TENSORS, read_linear, write_linear
from qarvd.errors import SettingError
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.weight import sample_weight
from qarvd.quantize.model import recipe_codec
from qarvd.stream.rollout import roll_out

from .checkpoint_files import assert_same_tensors, metadata


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_full_precision_comes_back_to_the_bit(model: Model, tmp_path: Path, dtype: torch.dtype) -> None:
    model.tree.to(dtype)
    dtypes = dict.fromkeys(model.dtypes, dtype)
    save(replace(model, dtypes=dtypes), tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    assert_same_tensors(model.tree.state_dict(), loaded.tree.state_dict())
    assert (loaded.config, loaded.preset_name, loaded.recipe) == (model.config, "self-forcing", None)
    loaded.tree.float()  # as it is when it computes on a CPU
    save(loaded, tmp_path / "b.safetensors")
    assert_same_tensors(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))


def test_float32_matrices_are_written_as_bfloat16_and_vectors_stay(model: Model, tmp_path: Path) -> None:
    save(replace(model, dtypes={}), tmp_path / "a.safetensors")
    for key, dtype in load(tmp_path / "a.safetensors").dtypes.items():
        matrix = key.endswith(".weight") and model.tree.state_dict()[key].ndim > 1
        assert dtype == (torch.bfloat16 if matrix else torch.float32), key


def test_a_quantized_model_comes_back_to_the_bit(quantized: Model, quantized_file: Path) -> None:
    loaded = load(quantized_file)
    assert (loaded.config, loaded.preset_name) == (quantized.config, quantized.preset_name)
    assert (loaded.recipe, loaded.notes) == (quantized.recipe, quantized.notes)
    assert_same_tensors(state_tensors(quantized), state_tensors(loaded))
    layers = [m for m in quantized.tree.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 21 and any(layer.weight.split.n_outlier for layer in layers)
    for name, layer in quantized.tree.named_modules():
        if isinstance(layer, QuantizedLinear):
            again = loaded.tree.get_submodule(name)
            assert isinstance(again, QuantizedLinear) and again.bias is not None and layer.bias is not None
            assert again.weight.codec == layer.weight.codec and again.weight.split == layer.weight.split
            assert torch.equal(again.weight.codes, layer.weight.codes)
            assert torch.equal(again.weight.scale, layer.weight.scale)
            assert torch.equal(again.bias, layer.bias)


def test_a_quantized_model_streams_the_same_after_loading(
    quantized: Model, quantized_file: Path, embeddings: Tensor
) -> None:
    def clip(model: Model) -> Tensor:
        chunks = roll_out(model.tree.float(), model.config, model.preset, embeddings, (4, 4), 6, [0])
        return torch.cat([chunk.latents for chunk in chunks], dim=2)

    for module in quantized.tree.modules():  # the file holds other matrices in 16 bits
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1:
            weight.copy_(weight.half())
    assert torch.equal(clip(quantized), clip(load(quantized_file)))


def test_the_config_holds_only_what_comfyui_knows(model_file: Path, quantized_file: Path) -> None:
    expected = {"causal_ar": True, "num_heads": 2, "text_dim": 16, "text_len": 4, "freq_dim": 32}
    for path in (model_file, quantized_file):
        assert json.loads(metadata(path)["config"]) == {"transformer": expected}


def test_the_marker_is_the_format_in_json(quantized: Model, quantized_file: Path) -> None:
    tensors = load_file(quantized_file)
    markers = {key: t for key, t in tensors.items() if key.endswith(".comfy_quant")}
    assert len(markers) == 21 and quantized.recipe
    for key, marker in markers.items():
        stored = json.loads(marker.numpy().tobytes())
        assert marker.dtype == torch.uint8 and stored == {"format": recipe_codec(quantized.recipe).format}
        assert tensors[key.replace("comfy_quant", "weight_outlier_idx")].dtype == torch.int32


def test_a_folder_that_cannot_be_written_to_is_refused(model: Model, model_file: Path, tmp_path: Path) -> None:
    for path in (model_file / "below.safetensors", tmp_path / "nowhere" / "a.safetensors", tmp_path):
        with pytest.raises(SettingError):
            save(model, path)


def test_saving_that_fails_midway_changes_nothing(
    model: Model, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_file.read_bytes()

    def half(tensors: object, path: Path, about: object) -> None:
        Path(path).write_bytes(before[: len(before) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(model_module, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        save(replace(model, preset_name="demo"), model_file)
    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]


def test_saving_replaces_a_file(model: Model, model_file: Path) -> None:
    save(replace(model, preset_name="longlive"), model_file)
    assert load(model_file).preset_name == "longlive"
    assert list(model_file.parent.iterdir()) == [model_file]


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.format)
def test_the_list_of_a_linears_tensors_is_that_of_those_written(codec: Codec) -> None:
    weight = sample_weight(codec)
    tensors = dict(write_linear("a.b", weight))
    optional = {"weight_zero": codec.group == 0, "weight_group_scale": codec.group > 0, "weight_table": codec.has_table}
    assert list(tensors) == [f"a.b.{part}" for part in TENSORS if optional.get(part, True)]
    read = read_linear("a.b", tensors)
    assert not tensors and torch.equal(read.dequantize(), weight.dequantize())

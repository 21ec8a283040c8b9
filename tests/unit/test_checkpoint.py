"""Checkpoint files: written and read exactly, and refused in a sentence when something is wrong with them."""

import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarvd.checkpoint import model as model_module
from qarvd.checkpoint.model import Model, load, save, state_tensors
from qarvd.checkpoint.naming import normalise, unwrap
from qarvd.errors import CheckpointError, QarvdError, SettingError
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES
from qarvd.stream.rollout import roll_out

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
        assert marker.dtype == torch.uint8 and stored == {"format": f"qarvd_w{quantized.recipe.weight_bits}a8"}
        assert tensors[key.replace("comfy_quant", "weight_outlier_idx")].dtype == torch.int32


def diffusers_name(name: str) -> str:
    """Wan's own names, the other way round."""
    for pattern, replacement in (
        (r"^text_embedding\.(\d)", lambda m: f"condition_embedder.text_embedder.linear_{int(m[1]) // 2 + 1}"),
        (r"^time_embedding\.(\d)", lambda m: f"condition_embedder.time_embedder.linear_{int(m[1]) // 2 + 1}"),
        (r"^time_projection\.1", "condition_embedder.time_proj"),
        (r"^head\.head", "proj_out"),
        (r"^head\.modulation", "scale_shift_table"),
        (r"\.modulation$", ".scale_shift_table"),
        (r"_attn\.([qkv])\.", r"_attn.to_\1."),
        (r"_attn\.o\.", "_attn.to_out.0."),
        (r"\.self_attn\.", ".attn1."),
        (r"\.cross_attn\.", ".attn2."),
        (r"\.norm3\.", ".norm2."),
        (r"\.ffn\.0\.", ".ffn.net.0.proj."),
        (r"\.ffn\.2\.", ".ffn.net.2."),
    ):
        name = re.sub(pattern, replacement, name)
    return name


RENAMES: dict[str, Callable[[str], str]] = {
    "wan": lambda name: name,
    "model": "model.{}".format,
    "diffusion_model": "model.diffusion_model.{}".format,
    "fsdp": lambda name: "model._fsdp_wrapped_module." + name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
    "compiled": lambda name: "model." + name.replace(".ffn", "._orig_mod.ffn"),
    "diffusers": diffusers_name,
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_published_naming_loads_to_the_same_tree(
    model: Model, tmp_path: Path, rename: Callable[[str], str], suffix: str
) -> None:
    tensors = state_tensors(model)
    renamed = {rename(key): tensor for key, tensor in tensors.items()}
    path = tmp_path / f"published{suffix}"
    if suffix == ".pt":
        torch.save({"generator": renamed, "step": 3}, path)
        config = model.config  # a .pt file can't say that heads have 32 channels: 64 // 128 heads are 1
        loaded = load(path, "causvid")
        assert loaded.config == replace(config, num_heads=1, text_len=512)
    else:
        save_file(renamed, path, {"config": json.dumps({"transformer": model.config.transformer_metadata()})})
        loaded = load(path, "causvid")
        assert loaded.config == model.config
    assert loaded.preset_name == "causvid"
    assert_same_tensors(loaded.tree.state_dict(), tensors)


def test_the_averaged_generator_is_preferred() -> None:
    better, worse = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    assert unwrap({"generator": {"model": worse}, "generator_ema": {"state_dict": better}, "critic": worse}) is better
    assert unwrap({"generator": worse, "step": 5}) is worse
    assert unwrap(better) is better


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(CheckpointError, match="Two tensors of the file are both called a"):
        normalise({"model.a": torch.zeros(1), "a": torch.zeros(1)})


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(model: Model, tmp_path: Path, new_format: bool) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    content = {"generator": state_tensors(model), "extra": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    assert "more than plain tensors" in refusal(path, "demo")
    assert not trace.exists()


@pytest.mark.parametrize("content", [{0: torch.zeros(1)}, {"a": 1}, {}, [1], torch.zeros(1)], ids=str)
def test_a_torch_file_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert "no tensors by name" in refusal(tmp_path / "a.pt", "demo")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 and then", b"\x80\x02}q"], ids=str)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    assert "truncated" in refusal(path, "demo")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(model_file: Path, tmp_path: Path, share: float) -> None:
    data = model_file.read_bytes()
    model_file.write_bytes(data[: int(share * len(data))])
    assert "truncated" in refusal(model_file)
    torch.save({"generator": {"a": torch.zeros(999)}}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[: int(share * len(data))])
    assert "truncated" in refusal(tmp_path / "a.pt", "demo")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("old_format", [False, True])
def test_no_damage_to_a_torch_file_escapes_as_another_error(
    tmp_path: Path, data: st.DataObject, old_format: bool
) -> None:
    path = tmp_path / "a.pt"
    torch.save({"generator": {"a": torch.zeros(9)}}, path, _use_new_zipfile_serialization=not old_format)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with pytest.raises(QarvdError):
        load(path, "demo")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"encoder.weight": torch.zeros(2, 2)}, path)
    assert "not a Wan video transformer" in refusal(path)
    assert "not a Wan video transformer" in refusal(path, "demo")


def test_a_missing_file_and_a_wrong_suffix_are_refused(tmp_path: Path, model_file: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "nowhere.safetensors")
    assert "There is no file" in refusal(tmp_path)
    assert "neither" in refusal(model_file.rename(tmp_path / "tiny.gguf"))


def test_a_file_that_does_not_name_its_family_needs_a_preset(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "wan.safetensors"
    save_file(state_tensors(model), path)
    message = refusal(path)
    assert "bidirectional" in message and "--preset" in message and "self-forcing" in message
    assert load(path, "longlive").preset.sink == 3
    with pytest.raises(SettingError, match="no preset 'sora'"):
        load(path, "sora")


def test_missing_and_extra_tensors_are_named(model_file: Path) -> None:
    message = refusal(change(model_file, {f"{LAYER}.bias": None, "img_emb.proj": torch.zeros(1)}))
    assert f"{LAYER}.bias" in message and "img_emb.proj" in message
    change(model_file, {f"blocks.1.{n}.bias": None for n in ("ffn.0", "ffn.2", "norm3", "self_attn.q", "self_attn.k")})
    assert "and 2 more" in refusal(model_file)


def test_a_tensor_of_another_shape_is_named(model_file: Path) -> None:
    assert f"{LAYER}.bias" in refusal(change(model_file, {f"{LAYER}.bias": torch.zeros(65)}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_a_dtype_without_a_marker_is_named(model_file: Path, dtype: torch.dtype) -> None:
    weight = load_file(model_file)[f"{LAYER}.weight"].to(dtype)
    message = refusal(change(model_file, {f"{LAYER}.weight": weight}))
    assert f"{LAYER}.weight" in message and str(dtype) in message and "full-precision" in message


@pytest.mark.parametrize("key", [f"{LAYER}.weight", "patch_embedding.weight", "head.modulation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(model_file: Path, key: str, value: float) -> None:
    tensor = load_file(model_file)[key]
    tensor.view(-1)[-1] = value
    assert f"{key} " in refusal(change(model_file, {key: tensor}))


def test_an_image_to_video_model_is_refused(model_file: Path) -> None:
    assert "text-to-video" in refusal(change(model_file, {"patch_embedding.weight": torch.zeros(64, 36, 1, 2, 2)}))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("patch_embedding.weight", (64,)),
        ("patch_embedding.weight", (64, 16, 1, 0, 2)),
        ("blocks.0.ffn.0.weight", ()),
        ("text_embedding.0.weight", (16,)),
        ("time_embedding.0.weight", (32,)),
        ("head.head.weight", ()),
    ],
)
def test_a_tensor_that_tells_no_dimensions_is_named(model_file: Path, key: str, shape: tuple[int, ...]) -> None:
    assert key in refusal(change(model_file, {key: torch.zeros(shape)}))


@pytest.mark.parametrize(
    "about",
    [
        {"config": "{"},
        {"config": "[]"},
        {"config": '{"transformer": 5}'},
        {"config": '{"transformer": {"num_heads": "two"}}'},
        {"config": '{"transformer": {"num_heads": 0}}'},
        {"config": '{"transformer": {"num_heads": 3}}'},
        {"config": '{"transformer": {"causal_ar": false, "num_heads": 2}}'},
        {"qarvd": '{"preset": "demo", "versions": 5}'},
        {"qarvd": '{"preset": "demo", "versions": {"format": 2}}'},
        {"qarvd": "nonsense"},
        {"qarvd": '{"preset": ["demo"]}'},
        {"qarvd": '{"preset": "sora"}'},
        {"qarvd": '{"preset": "demo", "recipe": 5}'},
        {"qarvd": '{"preset": "demo", "recipe": {"keep": 5}}'},
        {"qarvd": '{"preset": "demo", "recipe": {"rounding": 5}}'},
        {"qarvd": '{"preset": "demo", "recipe": {"colour": "red"}}'},
        {"qarvd": '{"preset": "demo", "checksum": null}'},
    ],
    ids=str,
)
def test_metadata_that_makes_no_sense_is_refused(model_file: Path, about: dict[str, str]) -> None:
    with pytest.raises(QarvdError):
        load(change(model_file, {}, about))


def bytes_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "weight_outlier_idx out of range": lambda t: t + 100,
    "weight_outlier_idx descending": lambda t: t.flip(0),
    "weight_outlier_idx of a count that is not aligned": lambda t: t[:-1],
    "weight_outlier_idx a number": lambda t: t[0],
    "weight_outlier_idx int64": lambda t: t.long(),
    "weight_scale NaN": lambda t: t * float("nan"),
    "weight_scale infinite": lambda t: t * float("inf"),
    "weight_scale negative": lambda t: -t,
    "weight_scale with a normal part too small": lambda t: t * torch.tensor([1.0, 1e-6]),
    "weight_scale half": lambda t: t.half(),
    "weight_scale of one column": lambda t: t[:, 0],
    "weight_scale of other rows": lambda t: t[:5],
    "weight as float": lambda t: t.float(),
    "weight of one axis": lambda t: t[0],
    "weight of fewer columns": lambda t: t[:, :-16],
    "comfy_quant of another version": lambda t: bytes_of('{"format": "qarvd_w2a8"}'),
    "comfy_quant without a format": lambda t: bytes_of("{}"),
    "comfy_quant with a list": lambda t: bytes_of('{"format": []}'),
    "comfy_quant not JSON": lambda t: torch.tensor([255, 254], dtype=torch.uint8),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_quantized_linear_is_named(quantized_file: Path, damage: str) -> None:
    key = f"{LAYER}.{damage.split()[0]}"
    tensor = load_file(quantized_file)[key]
    assert LAYER in refusal(change(quantized_file, {key: DAMAGES[damage](tensor)}))


@pytest.mark.parametrize("part", ["weight", "weight_scale", "weight_outlier_idx", "comfy_quant", "bias"])
def test_a_missing_part_of_a_quantized_linear_is_named(quantized_file: Path, part: str) -> None:
    assert LAYER in refusal(change(quantized_file, {f"{LAYER}.{part}": None}))


@pytest.mark.parametrize("offset", [0, 1000, -1])
def test_a_flipped_byte_is_found(model_file: Path, offset: int) -> None:
    data = bytearray(model_file.read_bytes())
    first = 8 + struct.unpack("<Q", data[:8])[0]
    data[first + offset if offset >= 0 else offset] ^= 1
    model_file.write_bytes(data)
    assert "checksum" in refusal(model_file)


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

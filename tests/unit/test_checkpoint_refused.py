"""A file with something wrong is refused in a sentence that names it, and code in it is never run."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from qarvd.checkpoint.model import Model, load, state_tensors
from qarvd.errors import QarvdError, SettingError

from .checkpoint_files import LAYER, change, refusal


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
    assert "is a folder; a file was expected" in refusal(tmp_path)
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

"""The command line does its jobs, and answers bad input with one sentence and exit code 2."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny.commands import Run, played
from torch import Tensor

from qarvd.checkpoint.model import Model, load, save, state_tensors
from qarvd.cli import main
from qarvd.errors import CheckpointError
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize.model import recipe_codec, weight_bits
from qarvd.recipe import RECIPES

LAYER = "blocks.1.ffn.0"


def changed(path: Path, tensors: dict[str, Tensor | None]) -> Path:
    """Write a file beside `path` with some tensors replaced or left out."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
    ours = json.loads(about["qarvd"])
    del ours["checksum"]
    merged = {**load_file(path), **tensors}
    new = path.with_name("changed.safetensors")
    save_file({k: t for k, t in merged.items() if t is not None}, new, {**about, "qarvd": json.dumps(ours)})
    return new


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:5000])
    return path


def foreign(path: Path) -> Path:
    save_file({"vae.weight": torch.zeros(3)}, path)
    return path


def bidirectional(path: Path) -> Path:
    save_file(load_file(path), path)
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "truncated"),
    "foreign": (foreign, "not a Wan video transformer"),
    "bidirectional": (bidirectional, "--preset"),
    "missing": (lambda path: path.with_name("nowhere.safetensors"), "There is no file"),
    "tensor missing": (lambda path: changed(path, {f"{LAYER}.bias": None}), f"{LAYER}.bias"),
    "tensor too many": (lambda path: changed(path, {"img_emb.w": torch.zeros(1)}), "img_emb.w"),
    "dtype": (lambda path: changed(path, {f"{LAYER}.weight": torch.ones(128, 64).char()}), f"{LAYER}.weight "),
    "NaN": (lambda path: changed(path, {f"{LAYER}.weight": torch.full((128, 64), torch.nan)}), f"{LAYER}.weight "),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_every_verb_refuses_a_bad_file(
    refused: Run, arguments: list[object], model_file: Path, tmp_path: Path, bad: str
) -> None:
    spoil, expected = BAD_FILES[bad]
    path = spoil(model_file)
    before = sorted(tmp_path.iterdir())
    if bad != "bidirectional":  # its family matters only to what streams
        assert expected in refused("inspect", path)
        assert expected in refused("compare", path, path)
    assert expected in refused("quantize", path, "--out", tmp_path / "out.safetensors")
    assert expected in refused("stream", path, *arguments[2:])
    assert sorted(tmp_path.iterdir()) == before


def test_quantize_refuses_what_it_cannot_write_before_the_work(
    refused: Run, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qarvd.cli.quantize.load_model", lambda *_: pytest.fail("the work began"))
    assert "must end in .safetensors" in refused("quantize", model_file, "--out", tmp_path / "a.mp4")
    assert "choose another folder" in refused("quantize", model_file, "--out", model_file / "a.safetensors")
    assert "is a folder" in refused("quantize", model_file, "--out", folder(tmp_path / "b.safetensors"))


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_reader_that_has_had_enough_is_no_error(model_file: Path) -> None:
    shown = subprocess.Popen(
        [sys.executable, "-m", "qarvd", "inspect", str(model_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert shown.stdout and shown.stderr
    shown.stdout.close()
    assert shown.stderr.read() == b"" and shown.wait() == 1


def test_debug_shows_the_traceback(model_file: Path) -> None:
    with pytest.raises(CheckpointError):
        main(["inspect", str(truncated(model_file)), "--debug"])


@pytest.mark.parametrize(
    ("options", "format", "rotation"),
    [
        (("--recipe", "w3a8", "--group", 32, "--rotation", 32), "qarvd_w3g32a8", 32),
        (("--recipe", "w4a8"), "qarvd_w4g16a8", 256),
        (("--recipe", "w6a8", "--group", 0, "--rotation", 0), "qarvd_w6a8", 0),
        (("--format", "asym_w4a8_int8"), "asym_w4a8_int8", 64),
        (("--format", "asym_w4a8_int8", "--recipe", "w6a8", "--group", 64), "asym_w4a8_int8", 64),
        (("--format", "int8_tensorwise"), "int8_tensorwise", 64),
        (("--format", "int8_tensorwise", "--rotation", 0), "int8_tensorwise", 0),
    ],
)
def test_bits_groups_rotation_and_formats_are_options(
    run: Run, model_file: Path, prompts: Path, tmp_path: Path, options: tuple[object, ...], format: str, rotation: int
) -> None:
    small = tmp_path / "small.safetensors"
    run("quantize", model_file, *options, "--out", small)
    found = [module.weight for module in load(small).tree.modules() if isinstance(module, QuantizedLinear)]
    assert found and max(w.split.rotation for w in found) == rotation
    assert f" linears of {weight_bits(load(small).tree):.2f} bits a weight" in (told := run("inspect", small))
    assert format in told
    run("stream", small, "--prompt", f"{prompts}#1", "--chunks", 1, "--size", "48x32", "--out", tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").stat().st_size


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_a_model_is_quantized_inspected_compared_and_streamed(
    run: Run, refused: Run, arguments: list[object], model_file: Path, prompts: Path, tmp_path: Path, recipe: str
) -> None:
    small = tmp_path / "small.safetensors"
    assert "ffn.2" in run("quantize", model_file, "--recipe", recipe, "--out", small)
    assert small.stat().st_size < model_file.stat().st_size
    bits = weight_bits(load(small).tree)
    told = run("inspect", small)
    assert recipe_codec(RECIPES[recipe]).format in told and f" linears of {bits:.2f} bits a weight" in told
    assert bits > RECIPES[recipe].weight_bits and "self-forcing" in run("inspect", model_file)
    for more in ((), ("--target", "6 bits", "--prompts", prompts)):
        assert "already quantized" in refused("quantize", small, *more, "--out", tmp_path / "twice.safetensors")

    rows = [line.split() for line in run("compare", model_file, small).splitlines()[1:]]
    errors = {row[0]: float(row[-1]) for row in rows}
    assert len(errors) == 22 and errors["text_embedding.0"] == 0  # 16 input channels stay in full precision
    assert 0 < errors[LAYER] < (1e-4 if recipe == "w8a8" else 0.02)

    run("stream", small, *arguments[2:], "--latents", tmp_path / "clip.safetensors")
    assert played(tmp_path / "clip.mp4") == 6
    assert load_file(tmp_path / "clip.safetensors")["latents"].shape == (1, 16, 6, 4, 6)


def test_a_single_scale_leaves_no_outliers(run: Run, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "single.safetensors"
    run("quantize", model_file, "--single-scale", "--out", path)
    recipe = load(path).recipe
    assert recipe and recipe.outliers == "none"


def test_two_clips_compare_by_chunk(run: Run, refused: Run, arguments: list[object], tmp_path: Path) -> None:
    for seed in (0, 1):
        out = tmp_path / f"{seed}.mp4"
        run(*arguments, "--seed", seed, "--out", out, "--latents", out.with_suffix(".safetensors"))
    for suffix in ("mp4", "safetensors"):
        same = run("compare", tmp_path / f"0.{suffix}", tmp_path / f"0.{suffix}").splitlines()
        other = run("compare", tmp_path / f"0.{suffix}", tmp_path / f"1.{suffix}").splitlines()
        assert [line.split()[0] for line in same[1:]] == ["0-2", "3-5", "all"]
        assert all(line.endswith("inf") for line in same[1:]) and not any(line.endswith("inf") for line in other[1:])
    assert "give two files of the same kind" in refused("compare", tmp_path / "0.mp4", tmp_path / "text.safetensors")
    assert "0.mp4 is a video and" in refused("compare", tmp_path / "0.mp4", tmp_path / "0.safetensors")
    run(*arguments, "--chunks", 1, "--out", tmp_path / "short.mp4")
    assert "only clips of the same shape" in refused("compare", tmp_path / "0.mp4", tmp_path / "short.mp4")
    save_file({"latents": torch.zeros(3)}, tmp_path / "flat.safetensors")
    assert "five axes" in refused("compare", tmp_path / "flat.safetensors", tmp_path / "0.safetensors")
    (tmp_path / "1.mp4").write_bytes(b"no video")
    assert "cannot be read as a video" in refused("compare", tmp_path / "0.mp4", tmp_path / "1.mp4")


def test_quantizing_that_fails_midway_leaves_an_existing_file_as_it_was(
    model: Model, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")

    def half(tensors: object, path: Path, about: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("qarvd.checkpoint.model.save_file", half)
    assert main(["quantize", str(model_file), "--out", str(out)]) == 130
    assert out.read_bytes() == b"precious" and sorted(tmp_path.iterdir()) == sorted([model_file, out])


def test_a_file_that_names_no_family_streams_with_a_preset(
    run: Run, arguments: list[object], model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(state_tensors(model), path)
    assert "causvid" in run("inspect", path, "--preset", "causvid")
    run("quantize", path, "--preset", "causvid", "--out", tmp_path / "small.safetensors")
    assert load(tmp_path / "small.safetensors").preset_name == "causvid"


def test_saving_keeps_the_chosen_family(run: Run, model: Model, tmp_path: Path) -> None:
    save(replace(model, preset_name="longlive"), tmp_path / "a.safetensors")
    assert "window=12" in run("inspect", tmp_path / "a.safetensors")

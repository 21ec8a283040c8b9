"""`inspect` and `compare` tell of layers without being told the family."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.commands import Run

from qarvd.checkpoint.model import Model, state_tensors
from qarvd.demo.bundle import MODEL
from qarvd.stream.presets import PRESETS


@pytest.fixture(params=[".safetensors", ".pt"])
def plain(request: pytest.FixtureRequest, model: Model, tmp_path: Path) -> Path:
    """A full-precision checkpoint as published: nothing but tensors."""
    path = tmp_path / f"plain{request.param}"
    tensors = state_tensors(model)
    torch.save({"generator_ema": tensors}, path) if request.param == ".pt" else save_file(tensors, path)
    return path


def rows(told: str) -> dict[str, str]:
    """What is told, by the first word of each line."""
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in told.splitlines()}


def test_a_file_that_names_no_family_is_described_with_the_families_it_may_be_of(
    run: Run, model: Model, plain: Path
) -> None:
    told = rows(run("inspect", plain))
    assert told["family"].startswith("not named in the file")
    assert "'dim': 64, 'ffn_dim': 128" in told["dimensions"] and "'num_layers': 2" in told["dimensions"]
    assert "num_heads" not in told["dimensions"] and "text_len" not in told["dimensions"], "no tensor tells them"
    assert told["size"].endswith("it has no checksum")
    assert told["parameters"] == f"{sum(p.numel() for p in model.tree.parameters()):,}"
    kinds = [model.dtypes[key] for key in model.tree.state_dict()]
    assert f"{kinds.count(torch.float16)} float16" in told["tensors"]
    assert f"{kinds.count(torch.float32)} float32" in told["tensors"]
    assert set(told) & set(PRESETS) == set(PRESETS) - {"demo"}
    assert told["longlive"].split() == ["3", "1000,", "750,", "500,", "250", "5", "12", "3"]
    assert "the whole clip" in told["self-forcing"]
    assert "first 1000, 750, 500, 250; then 1000 " in told["causal-forcing-1-step"]


def test_the_family_is_told_where_it_is_known_and_others_are_not(run: Run, plain: Path, model_file: Path) -> None:
    for told in (rows(run("inspect", plain, "--preset", "causvid")), rows(run("inspect", model_file))):
        assert told["family"].split(":")[0] in ("causvid", "self-forcing")
        assert not set(told) & set(PRESETS)
        assert "'num_heads': " in told["dimensions"]
    assert told["size"].endswith("the checksum is right")


def test_only_the_demos_dimensions_are_the_demos(run: Run, tmp_path: Path) -> None:
    save_file(load_file(MODEL), tmp_path / "plain.safetensors")
    assert set(rows(run("inspect", tmp_path / "plain.safetensors"))) & set(PRESETS) == {"demo"}


def test_a_quantized_file_without_metadata_is_described_by_its_layers(
    run: Run, refused: Run, model: Model, model_file: Path, tmp_path: Path
) -> None:
    small, bare = tmp_path / "small.safetensors", tmp_path / "bare.safetensors"
    run("quantize", model_file, "--recipe", "w4a8", "--out", small)
    save_file(load_file(small), bare)
    told, whole = rows(run("inspect", bare)), rows(run("inspect", small))
    assert told["family"].startswith("not named") and told["tensors"] == whole["tensors"]
    assert told["blocks.0.ffn.2"] == whole["blocks.0.ffn.2"]
    count = f"{sum(p.numel() for p in model.tree.parameters()):,}"
    assert "num_heads" not in told["dimensions"] and "text_len" not in told["dimensions"], "no tensor tells them"
    assert told["size"].endswith("it has no checksum")
    assert told["parameters"] == whole["parameters"] == count  # a weight counts once, whatever bits it has


def test_layers_are_compared_whatever_the_family(run: Run, plain: Path, model_file: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    run("quantize", model_file, "--out", small)
    assert run("compare", plain, small) == run("compare", model_file, small)


def test_a_model_that_says_it_is_not_autoregressive_is_refused_as_such(
    refused: Run, model: Model, tmp_path: Path
) -> None:
    about = {"config": json.dumps({"transformer": {"causal_ar": False, "num_heads": 2}})}
    save_file(state_tensors(model), tmp_path / "both.safetensors", about)
    for more in ((), ("--preset", "causvid")):
        said = refused("inspect", tmp_path / "both.safetensors", *more)
        assert "causal_ar is false" in said and "--preset" not in said

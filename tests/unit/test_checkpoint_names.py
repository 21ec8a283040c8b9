"""Whatever a checkpoint calls its tensors, it is the same tree."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qarvd.checkpoint.model import Model, load, state_tensors
from qarvd.checkpoint.naming import normalise, unwrap
from qarvd.errors import CheckpointError

from .checkpoint_files import assert_same_tensors


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

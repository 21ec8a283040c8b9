"""Branches of one MODEL in one graph: what one of them does to the weights in place is not seen by another."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import comfy.model_management as management
import pytest
import torch

Part = Callable[[str], ModuleType]
LINEAR = "diffusion_model.blocks.0.ffn.0.weight"


def with_lora(patcher: Any) -> Any:
    """A clone with something added to one weight, as a LoRA loader makes it."""
    clone = patcher.clone()
    clone.add_patches({LINEAR: ("diff", (torch.full((1024, 256), 0.05),))}, 1.0)
    return clone


@pytest.mark.parametrize("mode", [True, False], ids=["inference", "gradients"])
@pytest.mark.parametrize("bits", [16, 8])
def test_a_model_is_read_without_the_lora_that_ran_on_its_clone(
    part: Part, model_of: Callable[[int], Any], bits: int, mode: bool
) -> None:
    host, files = part("nodes.host"), part("qarvd.checkpoint.model")
    with torch.inference_mode():
        patcher = model_of(bits)
        before = files.state_tensors(host.library_model(patcher))
        clone = with_lora(patcher)
        management.load_models_gpu([clone])
    patched = patcher.model.diffusion_model.state_dict()["blocks.0.ffn.0.weight"]
    assert not torch.equal(patched, before["blocks.0.ffn.0.weight"])
    with torch.inference_mode(mode):
        after = files.state_tensors(host.library_model(patcher))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.newer_comfyui
def test_a_model_that_another_loader_quantized_is_refused_also_once_it_knows_its_family(
    part: Part, demo_files: Callable[[int], Any]
) -> None:
    import nodes

    host = part("nodes.host")
    (foreign,) = nodes.UNETLoader().load_unet(_listed(demo_files(8)), "default")
    with pytest.raises(
        part("qarvd.errors").CheckpointError, match="is quantized as qarvd_w8a8, but came from another loader"
    ):
        host.library_model(host.with_family(foreign, "longlive"))


def _listed(path: Any) -> str:
    """The name of a file, once ComfyUI's loaders list it."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    return path.name

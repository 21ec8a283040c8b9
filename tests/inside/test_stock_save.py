"""What ComfyUI's own Save node (ModelSave) drops can be told again: such a file streams as the one that it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import folder_paths
import pytest
import torch
from torch import Tensor

Part = Callable[[str], ModuleType]
FRAMES = 6


@pytest.fixture(scope="module", autouse=True)
def in_inference_mode() -> Iterator[None]:
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture
def save() -> Callable[[Any], str]:
    """Save a MODEL with ComfyUI's own node; the name of the file for its loaders."""

    def save(model: Any) -> str:
        from comfy_extras.nodes_model_merging import ModelSave

        node = ModelSave()
        node.output_dir = folder_paths.get_folder_paths("diffusion_models")[0]
        node.save(model, "saved")
        return max(Path(node.output_dir).glob("saved*"), key=lambda file: file.stat().st_mtime_ns).name

    return save


@pytest.fixture
def saved(save: Callable[[Any], str], model_of: Callable[[int], Any]) -> Callable[[int], str]:
    """The demo of so many bits, saved so."""
    return lambda bits: save(model_of(bits))


def load(part: Part, name: str, family: str, model: Any = None) -> Any:
    """The MODEL of Load AR Model."""
    return part("nodes.models").LoadModel.execute(name, family, model)[0]


def streamed(part: Part, model: Any) -> Tensor:
    """Latents of a MODEL's tree, by the dimensions that the MODEL itself tells."""
    host = part("nodes.host")
    config, tree = host.config_of(model), model.model.diffusion_model
    preset = part("qarvd.stream.presets").PRESETS[host.family_of(model)]
    text = torch.randn(1, 4, config.text_dim, generator=torch.Generator().manual_seed(1))
    chunks = part("qarvd.stream.rollout").roll_out(tree, config, preset, text, (8, 8), FRAMES, [3])
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_file_streams_as_before_once_its_family_is_chosen(
    part: Part, saved: Callable[[int], str], demo_files: Callable[[int], Path], bits: int
) -> None:
    host, library = part("nodes.host"), part("qarvd.checkpoint.model")
    model = load(part, saved(bits), "demo")
    before = library.load(part("qarvd.demo.bundle").MODEL if bits == 16 else demo_files(bits))
    # ComfyUI saves in the dtype in which it computes, on a CPU float32.
    before = host.patcher_of(replace(before, dtypes=dict.fromkeys(before.dtypes, torch.float32)))
    assert host.config_of(model) == host.config_of(before)
    assert torch.equal(streamed(part, model), streamed(part, before))


@pytest.mark.parametrize("bits", [16, 8])
def test_without_a_family_the_sentence_says_who_dropped_it(part: Part, saved: Callable[[int], str], bits: int) -> None:
    with pytest.raises(part("qarvd.errors").CheckpointError, match=r"ComfyUI's own Save node.*\bdrop.*: demo, self-"):
        load(part, saved(bits), "automatic")


@pytest.mark.parametrize("bits", [8, 4])
def test_our_own_node_writes_it_whole_again(
    part: Part, saved: Callable[[int], str], demo_files: Callable[[int], Path], bits: int
) -> None:
    library, saving = part("qarvd.checkpoint.model"), part("nodes.quantizing")
    path = Path(saving.SaveModel.execute(load(part, saved(bits), "demo"), "whole", saving.QARVD)[0])
    whole, before = library.load(path), library.load(demo_files(bits))
    assert (whole.preset_name, whole.config, whole.recipe) == ("demo", before.config, None)
    held, expected = library.state_tensors(whole), library.state_tensors(before)
    assert held.keys() == expected.keys()
    codes = [key for key in expected if expected[key].dtype in (torch.int8, torch.uint8, torch.int32)]
    assert len(codes) > 60 and all(torch.equal(held[key], expected[key]) for key in codes)


def test_a_model_of_such_a_file_is_not_quantized_again(part: Part, saved: Callable[[int], str]) -> None:
    recipe = part("qarvd.recipe").Recipe()
    with pytest.raises(part("qarvd.errors").CheckpointError, match="already quantized"):
        part("nodes.quantizing").Quantize.execute(load(part, saved(8), "demo"), recipe, "automatic")


def test_of_what_tensors_do_not_show_a_file_is_believed_and_else_its_family(part: Part, demo_files: Any) -> None:
    library = part("qarvd.checkpoint.model")
    contents = part("qarvd.checkpoint.read").read(demo_files(8))
    told = {"num_heads": 2, "text_len": 9}
    for transformer, expected in (({}, (4, 8)), (told, (2, 9))):
        config = library.assemble(dict(contents.tensors), transformer, "demo").config
        assert (config.num_heads, config.text_len) == expected


@pytest.mark.newer_comfyui
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_stock_loader_opens_it_as_the_ordinary_model_which_streams_once_it_is_told_its_family(
    part: Part, save: Callable[[Any], str], bits: int
) -> None:
    """With the text of real models, since that is what ComfyUI takes for granted where metadata is gone."""
    import nodes

    library = part("qarvd.checkpoint.model")
    torch.manual_seed(0)
    tree = part("qarvd.wan.tree").WanTree(
        part("qarvd.wan.config").WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2)
    )
    model = library.assemble({**tree.requires_grad_(False).state_dict()}, {}, "self-forcing")
    if bits < 16:
        recipe = part("qarvd.recipe").Recipe(weight_bits=bits).without_data()
        model, _ = part("qarvd.jobs.quantize").quantize(model, recipe)
    before = part("nodes.host").patcher_of(model)
    (stock,) = nodes.UNETLoader().load_unet(save(before), "default")
    assert type(stock.model.diffusion_model).__name__ == "WanModel"
    told = load(part, "(no file)", "self-forcing", stock)
    assert torch.equal(streamed(part, told), streamed(part, before))

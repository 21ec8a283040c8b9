"""Files in ComfyUI's own formats, fitted by us: in ComfyUI's own loader, sampler, LoRA and save nodes, and in ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management as management
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.newer_comfyui

Part = Callable[[str], ModuleType]
CHUNK, CHUNKS, SEED = 3, 2, 7
LINEAR = "blocks.1.self_attn.q"
FORMS = {
    "4 bits in 16": ("w4a8", "asym_w4a8_int8", {}),
    "4 bits in 64": ("w4a8", "asym_w4a8_int8", {"group": 64}),
    "6 bits": ("w6a8", "asym_w4a8_int8", {}),
    "rotated 8 bits": ("w8a8", "int8_tensorwise", {}),
    "8 bits": ("w8a8", "int8_tensorwise", {"rotation": 0}),
}


@pytest.fixture(scope="module", autouse=True)
def in_inference_mode(part: Part) -> Iterator[None]:
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=FORMS)
def file(request: pytest.FixtureRequest, part: Part, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, rounded to nearest in one of the formats, where ComfyUI's loaders find it."""
    from dataclasses import replace

    import folder_paths
    from comfy.quant_ops import QUANT_ALGOS

    name, format, fields = FORMS[request.param]
    if format not in QUANT_ALGOS:
        pytest.skip(f"this ComfyUI does not have {format}")
    if name == "w6a8" and "bits" not in _kitchen_options():
        pytest.skip("this comfy-kitchen has asym_w4a8_int8 of 4 bits only")
    if name == "w8a8" and "rotation" not in fields and "convrot" not in _source_of_comfy_ops():
        pytest.skip("this ComfyUI loads int8_tensorwise without rotation only")
    library = part("qarvd.checkpoint.model")
    recipe = replace(part("qarvd.recipe").RECIPES[name].in_format(format), **fields).without_data()
    model, _ = part("qarvd.jobs.quantize").quantize(library.load(part("qarvd.demo.bundle").MODEL), recipe)
    path = tmp_path_factory.mktemp("exports") / f"{request.param.replace(' ', '-')}.safetensors"
    library.save(model, path)
    folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    return path


def _kitchen_options() -> set[str]:
    """What comfy-kitchen's quantizer of 4-bit weights can be told."""
    from inspect import signature

    import comfy_kitchen

    return set(signature(comfy_kitchen.quantize_w4a8_int8_weight).parameters)


def _source_of_comfy_ops() -> str:
    from inspect import getsource

    import comfy.ops

    return getsource(comfy.ops)


@pytest.fixture
def stock(file: Path) -> Any:
    """The MODEL of "Load Diffusion Model"."""
    import nodes

    return nodes.UNETLoader().load_unet(file.name, "default")[0]


def held(model: Any) -> dict[str, Any]:
    """The quantized linears of a MODEL, by name."""
    modules = model.model.diffusion_model.named_modules()
    return {name: module for name, module in modules if getattr(module, "quant_format", None)}


def fitted(part: Part, path: Path) -> dict[str, Any]:
    """The file's quantized linears, as the library reads them."""
    quantized = part("qarvd.ops.linear").QuantizedLinear
    tree = part("qarvd.checkpoint.model").load(path).tree
    return {name: module.float() for name, module in tree.named_modules() if isinstance(module, quantized)}


def video(part: Part, tree: Any, config: Any) -> Tensor:
    """Latents that a tree streams."""
    preset = part("qarvd.stream.presets").PRESETS["demo"]
    text = part("qarvd.demo.bundle").embed([part("qarvd.demo.prompts").Prompt(7, "left", "fast", "middle")])
    chunks = part("qarvd.stream.rollout").roll_out(tree, config, preset, text, (8, 8), CHUNK * CHUNKS, [SEED])
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def lost(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().sum() / expected.square().sum())


def test_comfyuis_loader_holds_what_was_fitted_to_the_bit(stock: Any, file: Path, part: Part) -> None:
    assert type(stock.model.diffusion_model).__name__ == "CausalWanModel"
    tensors, found, expected = load_file(file), held(stock), fitted(part, file)
    assert found.keys() == expected.keys() and len(found) > 20
    hadamard = part("qarvd.ops.hadamard")
    for name, linear in found.items():
        for key, tensor in linear.weight.state_dict(f"{name}.weight").items():
            bytes_ = (t.contiguous().flatten().view(torch.uint8) for t in (tensor, tensors[key]))
            assert torch.equal(*bytes_), key
        weight, ours = linear.weight.dequantize().float(), expected[name].weight
        torch.testing.assert_close(weight, ours.dequantize(), rtol=0, atol=1e-6 * float(ours.dequantize().abs().max()))
        turned = hadamard.rotate(weight, ours.columns.width(ours.shape[1]))
        codes = (turned / ours.scale[:, 1:].clamp_min(1e-30)).round()
        assert torch.equal(codes, ours.decoded.codes.float()), name
        x = torch.randn(40, linear.in_features, generator=torch.Generator().manual_seed(1))
        assert lost(linear(x), expected[name](x)) < 1e-4, name


def test_comfyuis_sampler_and_our_stream_give_the_same_video(
    stock: Any, file: Path, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy_extras.nodes_ar_video import SamplerARVideo
    from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced

    schedule = part("qarvd.stream.presets").PRESETS["demo"].schedule
    noise = torch.randn(1, 16, CHUNK * CHUNKS, 8, 8, generator=torch.Generator().manual_seed(11))

    class Given:
        """ComfyUI's noise, given beforehand."""

        seed = SEED

        def generate_noise(self, latent: Any) -> Tensor:
            return noise

    def draws() -> Callable[..., Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        return lambda like: torch.randn(tuple(getattr(like, "shape", like)), generator=generator)

    positive = part("nodes.demo").conditioning(part("qarvd.demo.prompts").Prompt(7, "left", "fast", "middle"))
    guider, sampler = BasicGuider.execute(stock, positive)[0], SamplerARVideo.execute(CHUNK)[0]
    monkeypatch.setattr(torch, "randn_like", draws())
    sigmas = torch.tensor([*(schedule.sigma(t) for t in schedule.timesteps), 0.0])
    latent = {"samples": torch.zeros_like(noise)}
    found = SamplerCustomAdvanced.execute(Given(), guider, sampler, sigmas, latent)[0]["samples"]
    found = stock.model.process_latent_in(found)

    def ours(path: Path) -> Tensor:
        model = part("qarvd.checkpoint.model").load(path)
        model.tree.float()
        embeddings = part("qarvd.demo.bundle").embed([part("qarvd.demo.prompts").Prompt(7, "left", "fast", "middle")])
        text = part("qarvd.wan.forward").encode_text(model.tree, model.config, embeddings)
        steps = part("qarvd.stream.sampler")
        denoiser = steps.Denoiser(model.tree, model.config, text, model.preset.cache(CHUNK * CHUNKS))
        chunks = steps.stream(denoiser, noise.split(CHUNK, dim=2), model.preset.schedule, draws())
        return torch.cat([chunk.latents for chunk in chunks], dim=2)

    assert lost(found, ours(file)) < 0.01


def test_our_nodes_stream_what_either_loader_gives(stock: Any, file: Path, part: Part) -> None:
    library, host = part("qarvd.checkpoint.model"), part("nodes.host")
    mine = part("nodes.models").LoadModel.execute(file.name, "automatic", None)[0]
    assert host.family_of(mine) == host.family_of(stock) == "demo"
    expected = video(part, library.load(file).tree.float(), host.config_of(mine))
    assert torch.equal(video(part, mine.model.diffusion_model, host.config_of(mine)), expected)
    assert lost(video(part, stock.model.diffusion_model, host.config_of(stock)), expected) < 0.01


def test_it_survives_unloading_and_comfyuis_own_save_node(stock: Any, file: Path, part: Part, tmp_path: Path) -> None:
    import folder_paths
    from comfy_extras.nodes_model_merging import ModelSave

    host = part("nodes.host")
    before = video(part, stock.model.diffusion_model, host.config_of(stock))
    management.load_models_gpu([stock])
    management.unload_all_models()
    assert torch.equal(video(part, stock.model.diffusion_model, host.config_of(stock)), before)
    node = ModelSave()
    node.output_dir = str(tmp_path)
    node.save(stock, f"saved-{file.stem}")
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    (saved,) = tmp_path.glob("saved*.safetensors")
    again = part("nodes.models").LoadModel.execute(saved.name, "demo", None)[0]
    mine = part("nodes.models").LoadModel.execute(file.name, "automatic", None)[0]
    tree = part("qarvd.checkpoint.model").load(saved, "demo").tree
    for name, module in fitted(part, file).items():
        assert torch.equal(tree.get_submodule(name).weight.dequantize(), module.weight.dequantize())
    found, expected = (video(part, m.model.diffusion_model, host.config_of(m)) for m in (again, mine))
    assert lost(found, expected) < 1e-3  # biases and norms were saved in another dtype


def test_our_save_node_writes_the_same_file_and_another_format_is_refused(file: Path, part: Part) -> None:
    saving = part("nodes.quantizing")
    mine = part("nodes.models").LoadModel.execute(file.name, "automatic", None)[0]
    written = Path(saving.SaveModel.execute(mine, f"again-{file.stem}", saving.AUTOMATIC)[0])
    before, after = load_file(file), load_file(written)
    assert before.keys() == after.keys()
    assert all(torch.equal(*(t[key].flatten().view(torch.uint8) for t in (before, after))) for key in before)
    (other,) = part("qarvd.recipe").STOCK.keys() - {part("qarvd.checkpoint.model").load(file).recipe.format}
    label = next(label for label, format in saving.FILES.items() if format == other)
    with pytest.raises(part("qarvd.errors").SettingError, match=f"For a file in {other}, quantize it"):
        saving.SaveModel.execute(mine, "other", label)


def test_a_lora_is_merged_by_comfyuis_own_requantizing(stock: Any, part: Part) -> None:
    import folder_paths

    import nodes

    linear = held(stock)[LINEAR]
    generator = torch.Generator().manual_seed(3)
    up = torch.randn(linear.out_features, 4, generator=generator)
    down = torch.randn(4, linear.in_features, generator=generator)
    start = linear.weight.dequantize().float()
    up *= start.std() / (up @ down).std()
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    keys = {f"diffusion_model.{LINEAR}.lora_A.weight": down, f"diffusion_model.{LINEAR}.lora_B.weight": up}
    save_file(keys, folder / "export.safetensors")
    merged = nodes.LoraLoaderModelOnly().load_lora_model_only(stock, "export.safetensors", 1.0)[0]
    management.load_models_gpu([merged])
    changed = held(merged)[LINEAR].weight.dequantize().float()
    assert lost(changed, start + up @ down) < 0.04 < lost(start, start + up @ down)
    host = part("nodes.host")
    assert torch.isfinite(video(part, merged.model.diffusion_model, host.config_of(merged))).all()
    management.unload_all_models()
    assert torch.equal(held(stock)[LINEAR].weight.dequantize().float(), start)


def test_a_model_of_another_loader_is_sent_to_load_ar_model(stock: Any, file: Path, part: Part) -> None:
    saving, recipe = part("nodes.quantizing"), part("qarvd.recipe").Recipe()
    for node in (
        lambda: saving.SaveModel.execute(stock, "again", saving.AUTOMATIC),
        lambda: saving.Quantize.execute(stock, recipe, "automatic"),
    ):
        with pytest.raises(part("qarvd.errors").CheckpointError, match=r"came from another loader.* Load AR Model"):
            node()

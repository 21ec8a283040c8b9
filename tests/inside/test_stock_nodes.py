"""A file that the library wrote, in ComfyUI's own nodes: loaded, sampled, saved, and with a LoRA merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.newer_comfyui

Part = Callable[[str], ModuleType]
CHUNK, CHUNKS, SEED = 3, 3, 7


@pytest.fixture(scope="module", autouse=True)
def in_inference_mode(part: Part) -> Iterator[None]:
    """As ComfyUI runs its nodes."""
    assert part("nodes.layout").register() is None
    with torch.inference_mode():
        yield


@pytest.fixture
def load_unet(demo_files: Callable[[int], Path]) -> Callable[[int], Any]:
    """The MODEL of "Load Diffusion Model"."""

    def load(bits: int) -> Any:
        import folder_paths

        import nodes

        folder = Path(folder_paths.get_folder_paths("diffusion_models")[0])
        folder.mkdir(parents=True, exist_ok=True)
        name = demo_files(bits).name
        if not (folder / name).exists():
            shutil.copy(demo_files(bits), folder / name)
        return nodes.UNETLoader().load_unet(name, "default")[0]

    return load


def linears(model: Any) -> dict[str, Any]:
    """The quantized ones of a MODEL, by name."""
    modules = model.model.diffusion_model.named_modules()
    return {name: module for name, module in modules if getattr(module, "quant_format", None)}


@pytest.mark.parametrize("bits", [8, 4])
def test_every_linear_of_the_file_is_held_as_it_is_stored(
    load_unet: Any, demo_files: Any, part: Part, bits: int
) -> None:
    model = load_unet(bits)
    assert type(model.model.diffusion_model).__name__ == "CausalWanModel"
    library = part("qarvd.checkpoint.model").load(demo_files(bits)).tree
    held = linears(model)
    quantized = part("qarvd.ops.linear").QuantizedLinear
    expected = {name: module for name, module in library.named_modules() if isinstance(module, quantized)}
    assert set(held) == set(expected) and len(expected) > 20
    for name, linear in held.items():
        x = torch.randn(3, linear.in_features)
        ours = expected[name].float()
        assert torch.equal(linear.weight.dequantize(), ours.weight.dequantize())
        assert torch.equal(linear(x), ours(x)), name


def test_its_family_is_known_without_being_chosen(load_unet: Any, part: Part) -> None:
    host = part("nodes.host")
    assert host.family_of(load_unet(4)) == host.family_of(load_unet(4).clone()) == "demo"
    with pytest.raises(part("qarvd.errors").SettingError, match="is 'demo', but 'causvid' was chosen"):
        host.family_of(load_unet(4), "causvid")


class Given:
    """ComfyUI's noise, given beforehand."""

    seed = SEED

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def generate_noise(self, latent: Any) -> Tensor:
        return self.noise


def draws() -> Callable[..., Tensor]:
    """Noise between steps, the same for both samplers; called with a shape or with a tensor of it."""
    generator = torch.Generator().manual_seed(SEED)
    return lambda like: torch.randn(tuple(getattr(like, "shape", like)), generator=generator)


def stock_video(model: Any, part: Part, prompt: Any, noise: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Latents of the stock `ar_video` sampler, in the model's space."""
    from comfy_extras.nodes_ar_video import SamplerARVideo
    from comfy_extras.nodes_custom_sampler import BasicGuider, SamplerCustomAdvanced

    schedule = part("qarvd.stream.presets").PRESETS["demo"].schedule
    sigmas = torch.tensor([*(schedule.sigma(t) for t in schedule.timesteps), 0.0])
    positive = part("nodes.demo").conditioning(prompt)
    guider, sampler = BasicGuider.execute(model, positive)[0], SamplerARVideo.execute(CHUNK)[0]
    monkeypatch.setattr(torch, "randn_like", draws())
    latent = {"samples": torch.zeros_like(noise)}
    found = SamplerCustomAdvanced.execute(Given(noise), guider, sampler, sigmas, latent)[0]["samples"]
    return model.model.process_latent_in(found)


def library_video(path: Path, part: Part, prompt: Any, noise: Tensor) -> Tensor:
    """Latents of the library's stream of a file, with the noise that the stock sampler would draw."""
    model = part("qarvd.checkpoint.model").load(path)
    model.tree.float()
    embeddings = part("qarvd.demo.bundle").embed([prompt])
    text = part("qarvd.wan.forward").encode_text(model.tree, model.config, embeddings)
    sampler = part("qarvd.stream.sampler")
    denoiser = sampler.Denoiser(model.tree, model.config, text, model.preset.cache(CHUNK * CHUNKS))
    chunks = sampler.stream(denoiser, noise.split(CHUNK, dim=2), model.preset.schedule, draws())
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_stock_sampler_gives_what_our_stream_gives_within_what_quantizing_changes(
    load_unet: Any, demo_files: Any, part: Part, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    prompt = part("qarvd.demo.prompts").Prompt(7, "left", "fast", "middle")
    noise = torch.randn(4, 16, CHUNK * CHUNKS, 8, 8, generator=torch.Generator().manual_seed(11))
    stock = stock_video(load_unet(bits), part, prompt, noise, monkeypatch)
    ours = library_video(demo_files(bits), part, prompt, noise)
    full = library_video(part("qarvd.demo.bundle").MODEL, part, prompt, noise)
    assert stock.shape == ours.shape == full.shape
    between, quantizing = ((a - ours).square().mean().item() for a in (stock, full))
    print(f"{bits} bits: squared error {between:.3g} between the samplers, {quantizing:.3g} of quantizing")
    assert between < quantizing


def test_the_demos_text_is_as_long_as_its_model_attends_to(part: Part) -> None:
    bundle = part("qarvd.demo.bundle")
    assert part("qarvd.checkpoint.model").load(bundle.MODEL).config.text_len == bundle.TEXT_LEN
    text = part("nodes.demo").Language().encode_from_tokens_scheduled("a 7 moving left")[0][0]
    assert text.shape[1] == bundle.TEXT_LEN and not text[:, 4:].any()


def saved_by_stock(model: Any) -> Path:
    """The file that "Save Diffusion Model" writes."""
    import folder_paths
    from comfy_extras.nodes_model_merging import ModelSave

    ModelSave().save(model, "saved/model")
    return max(
        Path(folder_paths.get_output_directory(), "saved").glob("*.safetensors"), key=lambda f: f.stat().st_mtime
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_the_stock_save_node_writes_the_same_tensors(load_unet: Any, demo_files: Any, bits: int) -> None:
    before = load_file(demo_files(bits))
    after = load_file(saved_by_stock(load_unet(bits)))
    named = {key.removeprefix("model.diffusion_model."): tensor for key, tensor in after.items()}
    stored = [key for key in before if key.rpartition(".")[2] not in ("bias", "modulation") and "norm" not in key]
    assert any(key.endswith("weight_outlier_idx") for key in stored)
    for key in stored:
        if f"{key.rpartition('.')[0]}.comfy_quant" in before:
            assert named[key].dtype == before[key].dtype and torch.equal(named[key], before[key]), key
    assert set(before) == set(named)


def lora_file(model: Any, size: float) -> tuple[str, Tensor]:
    """A LoRA for one quantized linear of the demo, in models/loras: its name, and what it adds."""
    import folder_paths

    name, linear = next((name, linear) for name, linear in linears(model).items() if name.endswith("self_attn.q"))
    out, channels = linear.out_features, linear.in_features
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(out, 4, generator=generator), torch.randn(4, channels, generator=generator)
    up *= size * linear.weight.dequantize().std() / (up @ down).std()
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up},
        folder / "test.safetensors",
    )
    return name, up @ down


@pytest.mark.parametrize("bits", [8, 4])
def test_the_stock_lora_node_merges_into_it_and_the_save_node_saves_the_merged(
    load_unet: Any, demo_files: Any, part: Part, bits: int
) -> None:
    import nodes

    model = load_unet(bits)
    name, product = lora_file(model, 1.0)
    start = linears(model)[name].weight.dequantize()
    merged = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "test.safetensors", 1.0)[0]
    path = saved_by_stock(merged)
    tensors = {key.removeprefix("model.diffusion_model."): tensor for key, tensor in load_file(path).items()}
    weight = part("qarvd.checkpoint.quantized").read_linear(name, dict(tensors))
    off = (weight.dequantize() - start - product).square().mean() / (start + product).square().mean()
    assert off < (2e-4 if bits == 8 else 3e-2)
    others = [key for key in load_file(demo_files(bits)) if key.endswith("weight_scale") and name not in key]
    assert all(torch.equal(tensors[key], load_file(demo_files(bits))[key]) for key in others)


def test_a_marker_in_the_metadata_is_not_needed(demo_files: Any) -> None:
    with safe_open(demo_files(8), "pt") as file:
        assert "_quantization_metadata" not in file.metadata()
        assert json.loads(file.metadata()["config"])["transformer"]["causal_ar"] is True

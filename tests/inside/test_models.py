"""A MODEL in ComfyUI is the library's model: same tensors, same latents, and never changed by what reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from server import PromptServer
from torch import Tensor

Part = Callable[[str], ModuleType]


@pytest.fixture(scope="session")
def demo(part: Part) -> Any:
    """The library's demo model in float32."""
    model = part("qarvd.checkpoint.model").load(part("qarvd.demo.bundle").MODEL)
    model.tree.float()
    return model


@pytest.fixture
def patcher(part: Part) -> Any:
    """The demo as a MODEL."""
    return part("nodes.host").patcher_of(part("qarvd.checkpoint.model").load(part("qarvd.demo.bundle").MODEL))


@pytest.fixture(scope="session")
def text(part: Part) -> Tensor:
    bundle, prompts = part("qarvd.demo.bundle"), part("qarvd.demo.prompts")
    return bundle.embed([prompts.Prompt(7, "left", "fast", "middle")])


@pytest.fixture(scope="session")
def quantized(part: Part) -> Callable[[int], Any]:
    """The demo model rounded to nearest with published outliers, of so many bits, as the library has it."""

    def make(bits: int) -> Any:
        model = part("qarvd.checkpoint.model").load(part("qarvd.demo.bundle").MODEL)
        model.tree.float()
        recipe = part("qarvd.recipe").Recipe(weight_bits=bits).without_data()
        made, _ = part("qarvd.jobs.quantize").quantize(model, recipe)
        return made

    return make


def streamed(part: Part, tree: Any, model: Any, text: Tensor, frames: int = 9, seed: int = 3) -> Tensor:
    """Latents [1, 16, frames, 8, 8] of a tree."""
    with torch.no_grad():
        chunks = part("qarvd.stream.rollout").roll_out(tree, model.config, model.preset, text, (8, 8), frames, [seed])
        return torch.cat([chunk.latents for chunk in chunks], dim=2)


def run(part: Part, module: str, node: str, **inputs: Any) -> Any:
    """What a node gives, run as ComfyUI runs it: in inference mode, on a clone that knows its number, 5."""
    kind = getattr(part(f"nodes.{module}"), node)
    hidden = {io.Hidden.unique_id: "5"}
    clone = kind.PREPARE_CLASS_CLONE({"hidden_inputs": hidden, **hidden})  # as ComfyUI 0.27 and as 0.3.75 has it
    with torch.inference_mode():
        return clone.EXECUTE_NORMALIZED(**inputs).args


def made_by_node(part: Part, model: Any, text: Tensor, **inputs: Any) -> Any:
    """The LATENT of the streaming node."""
    size = {"width": 32, "height": 32, "batch_size": 1}
    stream = {"family": "automatic", "chunk_frames": 0, "window": 0, "sink": -1}
    samples, _ = run(
        part, "streaming", "StreamVideo", model=model, positive=[[text, {}]], seed=3, **size, **stream, **inputs
    )
    return samples


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is told to the page."""
    told: list[tuple[str, Any]] = []

    class Page:
        client_id, last_prompt_id = "page", "prompt"

        def send_sync(self, event: str, data: Any, client: str) -> None:
            assert client == "page"
            told.append((event, data))

    monkeypatch.setattr(PromptServer, "instance", Page(), raising=False)
    return told


def test_a_model_of_comfyui_streams_the_same_latents(part: Part, patcher: Any, demo: Any, text: Tensor) -> None:
    ours = streamed(part, demo.tree, demo, text)
    theirs = streamed(part, patcher.model.diffusion_model, demo, text)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_does_too(part: Part, quantized: Callable[[int], Any], text: Tensor, bits: int) -> None:
    made = quantized(bits)
    patcher = part("nodes.host").patcher_of(made)
    ours, theirs = (streamed(part, tree, made, text, 6) for tree in (made.tree, patcher.model.diffusion_model))
    assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_way_into_a_model_and_back_keeps_every_byte(
    part: Part, quantized: Callable[[int], Any], bits: int, tmp_path: Path
) -> None:
    made, model = quantized(bits), part("qarvd.checkpoint.model")
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    model.save(made, before)
    host = part("nodes.host")
    model.save(host.library_model(host.patcher_of(model.load(before))), after)
    stored = [model.read(path).tensors for path in (before, after)]
    assert stored[0].keys() == stored[1].keys()
    for key, tensor in stored[0].items():
        assert tensor.dtype == stored[1][key].dtype and torch.equal(tensor, stored[1][key]), key


def test_quantizing_leaves_the_input_as_it_was(part: Part, patcher: Any, text: Tensor, demo: Any) -> None:
    before = {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}
    recipe = part("qarvd.recipe").Recipe(weight_bits=4)
    made, _ = run(part, "quantizing", "Quantize", model=patcher, recipe=recipe, family="automatic")
    after = patcher.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(streamed(part, patcher.model.diffusion_model, demo, text), streamed(part, demo.tree, demo, text))
    assert not torch.equal(
        streamed(part, made.model.diffusion_model, demo, text), streamed(part, demo.tree, demo, text)
    )


def test_the_streaming_node_gives_the_latents_of_the_library_in_comfyuis_space(
    part: Part, patcher: Any, demo: Any, text: Tensor, events: list[tuple[str, Any]]
) -> None:
    samples = made_by_node(part, patcher, text, chunks=3, cache="16-bit")
    expected = patcher.model.latent_format.process_out(streamed(part, demo.tree, demo, text))
    assert torch.allclose(samples["samples"], expected, atol=1e-5)
    assert (samples["samples"] - streamed(part, demo.tree, demo, text)).abs().max() > 0.1  # the spaces differ
    assert [event for event, _ in events] == ["qarvd.chunk"] * 3
    assert [(data["node"], data["chunk"], data["chunks"], data["first_frame"]) for _, data in events] == [
        ("5", index, 3, 3 * index) for index in range(3)
    ]
    assert all(data["frames"] == 3 and (data["width"], data["height"]) == (32, 32) for _, data in events)
    assert all(data["sprite"].startswith("data:image/png;base64,") for _, data in events)


def test_what_the_quantizing_node_gives_streams_and_is_saved(
    part: Part, patcher: Any, text: Tensor, events: list[tuple[str, Any]]
) -> None:
    """Node after node in inference mode, as ComfyUI runs them."""
    recipe = part("qarvd.recipe").Recipe(weight_bits=8)
    made, _ = run(part, "quantizing", "Quantize", model=patcher, recipe=recipe, family="automatic")
    latents = made_by_node(part, made, text, chunks=2, cache="int4")
    assert latents["samples"].shape == (1, 16, 6, 8, 8) and len(events) == 2
    (path,) = run(part, "quantizing", "SaveModel", model=made, name="saved", format=part("nodes.quantizing").QARVD)
    assert part("qarvd.checkpoint.model").load(Path(path)).recipe == recipe.without_data()


def test_latents_pass_the_space_of_comfyui_once_in_each_direction(part: Part, patcher: Any) -> None:
    class Doubled:
        """A format of mean 3 and deviation 2."""

        latent_channels = 16

        def process_in(self, latents: Tensor) -> Tensor:
            return (latents - 3) / 2

        def process_out(self, latents: Tensor) -> Tensor:
            return latents * 2 + 3

    session = part("nodes.session")
    patcher.model.latent_format = Doubled()
    on = session.of(patcher, patcher.model, "automatic", (0, 0, -1), torch.device("cpu"))
    latents = torch.randn(1, 16, 3, 8, 8)
    assert torch.equal(on.to_model(latents), (latents - 3) / 2)
    assert torch.allclose(on.to_socket(on.to_model(latents)), latents, atol=1e-6)


def test_a_start_image_is_the_first_frame(
    part: Part, patcher: Any, text: Tensor, events: list[tuple[str, Any]]
) -> None:
    decoder = part("nodes.demo").Decoder()
    image = torch.zeros(1, 32, 32, 3)
    image[:, 8:24, 12:20] = 0.8
    samples = made_by_node(part, patcher, text, chunks=2, cache="int8", vae=decoder, start_image=image)
    frames = decoder.decode(samples["samples"])[0]
    assert frames.shape == (7, 32, 32, 3)
    assert (frames[0] - image[0]).abs().max() < 0.02


def test_the_decoder_serves_the_node_that_decodes_in_tiles(part: Part) -> None:
    import nodes

    decoder = part("nodes.demo").Decoder()
    latents = decoder.encode(torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0)))
    (frames,) = nodes.VAEDecodeTiled().decode(decoder, {"samples": latents}, 64)
    assert torch.equal(frames, decoder.decode(latents)[0])


def test_the_decoder_undoes_the_encoder(part: Part) -> None:
    decoder = part("nodes.demo").Decoder()
    image = torch.rand(2, 32, 32, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 3)
    assert torch.allclose(decoder.decode(decoder.encode(image))[0], image, atol=1e-5)


def test_a_patched_model_is_another_one(part: Part, patcher: Any) -> None:
    """So that statistics of the model without its patch are refused."""
    host = part("nodes.host")
    plain = host.library_model(patcher)
    key = "diffusion_model.blocks.0.ffn.0.weight"
    clone = patcher.clone()
    clone.add_patches({key: ("diff", (torch.full((1024, 256), 0.01),))}, 1.0)
    merged = host.library_model(clone)
    assert merged.identity != plain.identity
    difference = merged.tree.blocks[0].ffn[0].weight - plain.tree.blocks[0].ffn[0].weight
    assert torch.allclose(difference, torch.full_like(difference, 0.01), atol=1e-6)
    assert host.library_model(patcher).identity == plain.identity


def refused(part: Part, node: Callable[[], Any]) -> str:
    """The sentence of the error that `node` ends in."""
    with pytest.raises(part("qarvd.errors").QarvdError) as caught:
        node()
    return str(caught.value)


def test_a_quantized_model_is_not_quantized_again(part: Part, quantized: Callable[[int], Any]) -> None:
    patcher = part("nodes.host").patcher_of(quantized(8))
    recipe = part("qarvd.recipe").Recipe()
    again = lambda: run(part, "quantizing", "Quantize", model=patcher, recipe=recipe, family="automatic")  # noqa: E731
    assert "already quantized" in refused(part, again)


def test_models_that_cannot_be_streamed_are_refused_in_a_sentence(part: Part, patcher: Any) -> None:
    host = part("nodes.host")
    told = refused(part, lambda: host.family_of(patcher, "longlive"))
    assert "is 'demo', but 'longlive' was chosen" in told
    assert "bundled demo model" in refused(part, lambda: host.family_of(stranger(part, patcher), "demo"))
    assert "The family of this MODEL is not known" in refused(part, lambda: host.family_of(stranger(part, patcher)))
    other = stranger(part, patcher)
    other.model = torch.nn.Module()
    other.model.diffusion_model = torch.nn.Linear(2, 2)
    assert "This MODEL is a Linear, but a Wan text-to-video model is needed" in refused(
        part, lambda: host.config_of(other)
    )


def stranger(part: Part, patcher: Any) -> Any:
    """A MODEL of another loader."""
    clone = patcher.clone()
    clone.remove_attachments(part("nodes.host").ATTACHMENT)
    return clone


def test_a_model_of_another_loader_is_told_its_family(part: Part, patcher: Any) -> None:
    host = part("nodes.host")
    (told,) = run(part, "models", "LoadModel", file="(no file)", family="longlive", model=stranger(part, patcher))
    assert host.family_of(told) == "longlive"


def test_a_cache_that_does_not_fit_is_refused_before_it_is_made(part: Part, patcher: Any) -> None:
    session = part("nodes.session")
    told = refused(part, lambda: session.make_room(2**60, torch.device("cpu"), patcher))
    assert "Choose a smaller window, an int8 or int4 cache, or a smaller size" in told


@pytest.mark.parametrize("codec", ["16-bit", "int8", "int4"])
def test_the_room_that_is_made_is_what_a_cache_takes(
    part: Part, patcher: Any, demo: Any, text: Tensor, codec: str
) -> None:
    session = part("nodes.session")
    on = session.of(patcher, patcher.model, "automatic", (0, 0, -1), torch.device("cpu"))
    cache = on.preset.cache(30, codec)
    made = part("qarvd.stream.rollout").roll_out(
        patcher.model.diffusion_model, demo.config, on.preset, text, (8, 8), 30, [0], cache
    )
    with torch.no_grad():
        most = max(cache.nbytes for _ in made)
    assert most / 1.2 < session.cache_bytes(on, cache, 1, (8, 8), codec) < most * 1.2


def test_checkpoints_with_endings_in_capitals_are_offered_and_loaded(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, path = part("nodes.models"), tmp_path / "DEMO.SAFETENSORS"
    shutil.copy(part("qarvd.demo.bundle").MODEL, path)
    names = [path.name, "a.Pt", "b.pth", "notes.TXT", "c.gguf"]
    monkeypatch.setattr(models.folder_paths, "get_filename_list", lambda folder: names)
    monkeypatch.setattr(models.folder_paths, "get_full_path", lambda folder, name: str(tmp_path / name))
    assert models.checkpoint_files() == names[:3]
    (model,) = models.LoadModel.execute(path.name, "automatic").args
    assert part("nodes.host").family_of(model, "automatic") == "demo"

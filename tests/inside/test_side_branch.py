"""LoRAs that run beside linears: exact, stacked, taken off without a trace, and of a strength that may change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

Part = Callable[[str], ModuleType]
RANK = 4
Q, V, FFN = (f"blocks.0.{name}" for name in ("self_attn.q", "self_attn.v", "ffn.0"))
each_model = pytest.mark.parametrize("bits", [16, 8, 4])


@pytest.fixture
def model_of(part: Part, demo_files: Callable[[int], Path]) -> Callable[[int], Any]:
    """The demo as a MODEL: native where ComfyUI can hold our formats, else in the pack's own linears."""

    def load(bits: int) -> Any:
        path = part("qarvd.demo.bundle").MODEL if bits == 16 else demo_files(bits)
        return part("nodes.host").patcher_of(part("qarvd.checkpoint.model").load(path))

    return load


@pytest.fixture
def save_lora() -> Callable[..., str]:
    """Write a LoRA to models/loras and give its name."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)

    def save(tensors: dict[str, Any], name: str = "test.safetensors") -> str:
        if name.endswith(".pt"):
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name)
        return name

    return save


def matrices(model: Any, name: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Matrices up [out, rank] and down [rank, in] for a linear of the model, of about the effect of its own weight."""
    linear = model.get_model_object(f"diffusion_model.{name}")
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(linear.out_features, RANK, generator=generator) / RANK**0.5
    return up, torch.randn(RANK, linear.in_features, generator=generator) / linear.in_features**0.5


def plain(model: Any, *names: str, seed: int = 1) -> dict[str, Tensor]:
    """A LoRA file's tensors for these linears."""
    tensors = {}
    for name in names:
        up, down = matrices(model, name, seed)
        tensors |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    return tensors


def beside(part: Part, model: Any, name: str, strength: float = 1.0) -> Any:
    """What the node gives."""
    return part("nodes.lora").SideBranch.execute(model, name, strength)[0]


def run(model: Any, name: str, x: Tensor) -> Tensor:
    """Load a MODEL, and call one of its linears as every forward does."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    return model.model.get_submodule(f"diffusion_model.{name}")(x)


def tokens(model: Any, name: str = Q) -> Tensor:
    channels = model.get_model_object(f"diffusion_model.{name}").in_features
    return torch.randn(2, 50, channels, generator=torch.Generator().manual_seed(9))


@each_model
@torch.inference_mode()
def test_a_branch_adds_exactly_what_the_lora_says(part: Part, model_of: Any, save_lora: Any, bits: int) -> None:
    model = model_of(bits)
    lora = save_lora(plain(model, Q, FFN))
    for name in (Q, FFN):
        up, down = matrices(model, name)
        x = tokens(model, name)
        before = run(model, name, x)
        for strength in (1.0, -0.4):
            due = strength * x.double() @ down.double().T @ up.double().T
            added = run(beside(part, model, lora, strength), name, x) - before
            assert (added - due).norm() < 1e-5 * due.norm()
        assert torch.equal(run(model, V, x), run(beside(part, model, lora), V, x)) if name == Q else True


@each_model
@torch.inference_mode()
def test_taken_off_it_leaves_no_bit_changed(part: Part, model_of: Any, save_lora: Any, bits: int) -> None:
    model = model_of(bits)
    x, lora = tokens(model), save_lora(plain(model, Q, V, FFN))
    weights = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    before = run(model, Q, x)
    patched = beside(part, model, lora)
    assert not torch.equal(run(patched, Q, x), before)
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.model.state_dict().items())
    assert torch.equal(run(model, Q, x), before)
    assert not torch.equal(run(patched, Q, x), before)
    patched.detach()
    assert torch.equal(run(model, Q, x), before)


@each_model
@torch.inference_mode()
def test_several_add_up_and_the_model_below_keeps_its_own(part: Part, model_of: Any, save_lora: Any, bits: int) -> None:
    model = model_of(bits)
    x = tokens(model)
    one, two = (save_lora(plain(model, Q, seed=seed), f"{seed}.safetensors") for seed in (1, 2))
    base = run(model, Q, x)
    first = beside(part, model, one, 0.5)
    both = beside(part, first, two, 2.0)
    alone = [run(patched, Q, x) - base for patched in (first, beside(part, model, two, 2.0))]
    assert torch.allclose(run(both, Q, x), base + alone[0] + alone[1], atol=1e-4)
    assert torch.equal(run(first, Q, x) - base, alone[0])
    assert torch.equal(run(both, Q, x), run(both, Q, x))


@each_model
@torch.inference_mode()
def test_a_strength_of_nothing_gives_the_model_itself(part: Part, model_of: Any, save_lora: Any, bits: int) -> None:
    model = model_of(bits)
    assert beside(part, model, save_lora(plain(model, Q)), 0.0) is model


@torch.inference_mode()
def test_beside_and_merged_into_full_precision_it_does_the_same_to_the_stream(
    part: Part, model_of: Any, save_lora: Any
) -> None:
    import comfy.model_management

    import nodes

    model = model_of(16)
    names = [f"blocks.{i}.{name}" for i in range(2) for name in ("self_attn.q", "cross_attn.k", "self_attn.o", "ffn.2")]
    lora = save_lora({key: 0.3 * tensor for key, tensor in plain(model, *names).items()})
    merged = nodes.LoraLoaderModelOnly().load_lora_model_only(model, lora, 0.8)[0]
    forward, embeddings = (
        part("qarvd.wan.forward"),
        part("qarvd.demo.bundle").embed(part("qarvd.demo.prompts").split_prompts()[1][:1]),
    )
    x = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    found = []
    for patched in (model, merged, beside(part, model, lora, 0.8)):
        comfy.model_management.load_models_gpu([patched])
        tree, config = patched.model.diffusion_model, part("nodes.host").config_of(patched)
        text = forward.encode_text(tree, config, embeddings)
        denoiser = part("qarvd.stream.sampler").Denoiser(
            tree, config, text, part("qarvd.stream.presets").PRESETS["demo"].cache(3)
        )
        found.append(denoiser.velocity(x, 900.0, 0))
    without, due, came = found
    assert (came - due).norm() < 1e-3 * (due - without).norm()


@each_model
def test_a_changed_strength_compiles_nothing_again(part: Part, model_of: Any, save_lora: Any, bits: int) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = model_of(bits)
    lora, x = save_lora(plain(model, FFN)), tokens(model, FFN)
    block = model.model.diffusion_model.blocks[0].ffn
    counter = CompileCounter()
    compiled = torch.compile(block, backend=counter, fullgraph=bits == 16)
    outputs = []
    with torch.no_grad():
        for strength in (1.0, 0.5, 0.25, -1.0):
            run(beside(part, model, lora, strength), FFN, x)
            outputs.append(compiled(x))
            if strength == 1.0:
                compiled(x)  # the pack's own linears lay themselves out in the first call
                frames = counter.frame_count
    assert frames and counter.frame_count == frames
    assert all(not torch.equal(a, b) for a, b in pairwise(outputs))


@torch.inference_mode()
def test_its_matrices_go_to_the_device_with_the_model_and_leave_with_it(
    part: Part, model_of: Any, save_lora: Any
) -> None:
    model = model_of(16)
    lora = save_lora({key: tensor.half() for key, tensor in plain(model, Q).items()})
    patched = beside(part, model, lora)
    stands = patched.object_patches[f"diffusion_model.{Q}.forward"]
    branch = stands.__closure__[stands.__code__.co_freevars.index("branch")].cell_contents
    assert branch.up.dtype == torch.float16
    run(patched, Q, tokens(model))
    assert branch.up.dtype == branch.down.dtype == torch.float32
    run(model, Q, tokens(model))
    assert branch.up.dtype == torch.float16


@torch.inference_mode()
def test_norms_and_biases_of_a_lora_are_patched_as_comfyui_does(part: Part, model_of: Any, save_lora: Any) -> None:
    model = model_of(8)
    x = tokens(model)
    width = x.shape[-1]
    shift, norm = torch.linspace(-1, 1, width), torch.full((width,), 0.5)
    name = save_lora(
        plain(model, Q) | {f"diffusion_model.{Q}.diff_b": shift, "diffusion_model.blocks.0.self_attn.norm_q.diff": norm}
    )
    only = save_lora(plain(model, Q), "only.safetensors")
    before = model.model.diffusion_model.blocks[0].self_attn.norm_q.weight.clone()
    a, b = run(beside(part, model, only), Q, x), run(beside(part, model, name, 0.5), Q, x)
    base = run(model, Q, x)
    assert torch.allclose(b - base, 0.5 * (a - base) + 0.5 * shift, atol=1e-3)  # biases are float16
    patched = beside(part, model, name, 0.5)
    run(patched, Q, x)
    assert torch.allclose(patched.model.diffusion_model.blocks[0].self_attn.norm_q.weight, before + 0.25, atol=1e-2)


# Names.

STYLES: dict[str, Callable[[Tensor, Tensor], dict[str, Any]]] = {
    "Wan": lambda up, down: {f"diffusion_model.{Q}.lora_A.weight": down, f"diffusion_model.{Q}.lora_B.weight": up},
    "up and down": lambda up, down: {
        f"diffusion_model.{Q}.lora_down.weight": down,
        f"diffusion_model.{Q}.lora_up.weight": up,
    },
    "kohya": lambda up, down: {
        "lora_unet_blocks_0_self_attn_q.lora_down.weight": down,
        "lora_unet_blocks_0_self_attn_q.lora_up.weight": up,
    },
    "PEFT": lambda up, down: {
        f"base_model.model.{Q}.lora_A.default.weight": down,
        f"base_model.model.{Q}.lora_B.default.weight": up,
    },
    "bare": lambda up, down: {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up},
    "diffusers": lambda up, down: {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": down,
        "transformer.blocks.0.attn1.to_q.lora_B.weight": up,
    },
    "sharded": lambda up, down: {
        f"base_model.model.model._fsdp_wrapped_module.{Q}.lora_A.weight": down,
        f"base_model.model.model._fsdp_wrapped_module.{Q}.lora_B.weight": up,
    },
}


@pytest.mark.parametrize("style", STYLES)
@torch.inference_mode()
def test_it_is_found_under_whatever_names(part: Part, model_of: Any, save_lora: Any, style: str) -> None:
    model = model_of(16)
    up, down = matrices(model, Q)
    x = tokens(model)
    due = run(model, Q, x) + x @ down.T @ up.T
    assert torch.allclose(run(beside(part, model, save_lora(STYLES[style](up, down))), Q, x), due, atol=1e-4)


@torch.inference_mode()
def test_that_of_longlives_training_is_found_in_its_file(part: Part, model_of: Any, save_lora: Any) -> None:
    model = model_of(16)
    up, down = matrices(model, Q)
    x = tokens(model)
    due = run(model, Q, x) + x @ down.T @ up.T
    for extra in ({}, {"critic_lora": {}, "step": 3000}):
        file = save_lora({"generator_lora": STYLES["PEFT"](up, down)} | extra, "lora.pt")
        assert torch.allclose(run(beside(part, model, file), Q, x), due, atol=1e-4)


@torch.inference_mode()
def test_alpha_scales_it(part: Part, model_of: Any, save_lora: Any) -> None:
    model = model_of(16)
    x = tokens(model)
    with_alpha = save_lora(
        STYLES["kohya"](*matrices(model, Q)) | {"lora_unet_blocks_0_self_attn_q.alpha": torch.tensor(1.0)}
    )
    added = run(beside(part, model, with_alpha), Q, x) - run(model, Q, x)
    whole = run(beside(part, model, save_lora(plain(model, Q))), Q, x) - run(model, Q, x)
    assert torch.allclose(RANK * added, whole, atol=1e-4)


def spoiled(model: Any) -> dict[str, tuple[dict[str, Tensor], str]]:
    """LoRAs that don't fit, and a word of what is said of them."""
    up, down = matrices(model, Q)
    key = f"diffusion_model.{Q}"
    return {
        "another model": (
            {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{name}.weight": up for name in ("up",)},
            "another model.*double_blocks",
        ),
        "a wider model": (STYLES["Wan"](torch.cat([up, up]), torch.cat([down, down], 1)), "another model.*blocks.0"),
        "two ranks": (STYLES["Wan"](up, down[:2]), "another model"),
        "DoRA": (STYLES["Wan"](up, down) | {f"{key}.dora_scale": torch.ones(len(up), 1)}, "DoRA"),
        "LoHa": (
            {f"{key}.hada_{name}": {"a": up, "b": down}[name[-1]].clone() for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
            "loha",
        ),
    }


@pytest.mark.parametrize("kind", ["another model", "a wider model", "two ranks", "DoRA", "LoHa"])
def test_what_does_not_fit_is_refused_in_a_sentence(part: Part, model_of: Any, save_lora: Any, kind: str) -> None:
    model = model_of(16)
    tensors, words = spoiled(model)[kind]
    with pytest.raises(part("qarvd.errors").CheckpointError, match=words):
        beside(part, model, save_lora(copy.copy(tensors)))


def test_a_file_that_is_missing_or_empty_is_refused_in_a_sentence(part: Part, model_of: Any, save_lora: Any) -> None:
    model = model_of(16)
    errors = part("qarvd.errors")
    with pytest.raises(errors.SettingError, match="models/loras"):
        beside(part, model, "nothing.safetensors")
    with pytest.raises(errors.CheckpointError, match="no tensors"):
        beside(part, model, save_lora({"step": 1, "epoch": 2}, "state.pt"))


def test_every_widget_has_a_tooltip(part: Part) -> None:
    schema = part("nodes.lora").SideBranch.define_schema()
    assert schema.node_id == "QarvdLora" and len(schema.inputs) == 3
    assert all(entry.tooltip for entry in (*schema.inputs, *schema.outputs))

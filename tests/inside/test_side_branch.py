"""LoRAs that run beside linears: exact, stacked, taken off without a trace, and of a strength that may change."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from inside.loras import FFN, Q, V, beside, matrices, plain, run, tokens
from torch import Tensor

Part = Callable[[str], ModuleType]
each_model = pytest.mark.parametrize("bits", [16, 8, 4])


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
            expected = strength * x.double() @ down.double().T @ up.double().T
            added = run(beside(part, model, lora, strength), name, x) - before
            assert (added - expected).norm() < 1e-5 * expected.norm()
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
    without, expected, actual = found
    assert (actual - expected).norm() < 1e-3 * (expected - without).norm()


@each_model
def test_a_changed_strength_compiles_nothing_again(part: Part, model_of: Any, save_lora: Any, bits: int) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = model_of(bits)
    lora, x = save_lora(plain(model, FFN)), tokens(model, FFN)
    block = model.model.diffusion_model.blocks[0].ffn
    counter = CompileCounter()
    whole = bits == 16 or hasattr(block[0], "quant_format")  # the pack's own linears break graphs
    compiled = torch.compile(block, backend=counter, fullgraph=whole)
    outputs, frames = [], 0
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
def test_a_linear_with_a_branch_is_given_floats_and_codes_again_when_it_is_off(
    part: Part, model_of: Any, save_lora: Any
) -> None:
    model = model_of(8)
    attention = model.model.diffusion_model.blocks[0].self_attn
    if not hasattr(attention.q, "share_input"):
        pytest.skip("ComfyUI's own linears quantize their input each for itself")
    x, group = tokens(model), (attention.q, attention.k, attention.v)
    patched = beside(part, model, save_lora(plain(model, V)), 1.0)
    for loaded, shares in ((model, True), (patched, False), (model, True)):
        run(loaded, Q, x)
        assert isinstance(attention.q.share_input(x, group), Tensor) != shares


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


def test_every_widget_has_a_tooltip(part: Part) -> None:
    schema = part("nodes.lora").SideBranch.define_schema()
    assert schema.node_id == "QarvdLora" and len(schema.inputs) == 3
    assert all(entry.tooltip for entry in (*schema.inputs, *schema.outputs))

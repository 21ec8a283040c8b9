"""LoRA files under all the names that trainers give, and what is said of those that don't fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from inside.loras import RANK, Q, beside, matrices, plain, run, tokens
from torch import Tensor

Part = Callable[[str], ModuleType]

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
    expected = run(model, Q, x) + x @ down.T @ up.T
    assert torch.allclose(run(beside(part, model, save_lora(STYLES[style](up, down))), Q, x), expected, atol=1e-4)


@torch.inference_mode()
def test_that_of_longlives_training_is_found_in_its_file(part: Part, model_of: Any, save_lora: Any) -> None:
    model = model_of(16)
    up, down = matrices(model, Q)
    x = tokens(model)
    expected = run(model, Q, x) + x @ down.T @ up.T
    for extra in ({}, {"critic_lora": {}, "step": 3000}):
        file = save_lora({"generator_lora": STYLES["PEFT"](up, down)} | extra, "lora.pt")
        assert torch.allclose(run(beside(part, model, file), Q, x), expected, atol=1e-4)


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
    with pytest.raises(errors.CheckpointError, match="no named tensors"):
        beside(part, model, save_lora({"step": 1, "epoch": 2}, "state.pt"))

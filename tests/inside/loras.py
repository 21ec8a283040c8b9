"""What tests of LoRAs share."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Part = Callable[[str], ModuleType]
RANK = 4
Q, V, FFN = (f"blocks.0.{name}" for name in ("self_attn.q", "self_attn.v", "ffn.0"))


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

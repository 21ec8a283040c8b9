"""LoRA files: under whatever names they come, what they add to which weight of a MODEL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
from torch import Tensor, nn

from ..qarvd.checkpoint.naming import normalise
from ..qarvd.errors import CheckpointError
from ..qarvd.log import LOGGER

TRAINED = ("generator_lora", "generator_ema_lora")
"""Keys under which LongLive's training keeps a LoRA."""
PREFIX = "diffusion_model."

_WRAPPED = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_PREFIXES = re.compile(r"^(?:base_model\.model\.)?(?:model\.)*(?:diffusion_model\.|transformer\.)?")
_FLAT = ("lora_unet_", "lycoris_")
"""Starts of names that hold no dots, which ComfyUI's own tables resolve."""


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to a linear's weight at strength 1: scale * up @ down."""

    up: Tensor
    """[out, rank]"""
    down: Tensor
    """[rank, in]"""
    scale: float


@dataclass(frozen=True)
class Lora:
    """A LoRA fitted to a MODEL."""

    beside: Mapping[str, LowRank]
    """By the name of the linear, such as diffusion_model.blocks.0.self_attn.q."""
    patches: Mapping[str, Any]
    """What is not for a linear's weight (norms, biases, convolutions): ComfyUI's patches, by the name of the weight."""


def read_lora(path: Path, patcher: Any) -> Lora:
    """Read a LoRA for `patcher`.

    Raises CheckpointError for a file that holds none, or one of another model, or an adapter of another kind.
    """
    tensors = tensors_of(path)
    named = comfy.lora_convert.convert_lora(wan_names(tensors))
    known = comfy.lora.model_lora_keys_unet(patcher.model, {})
    found = comfy.lora.load_lora(named, known, log_missing=False)
    left = [key for key in named if not _has_place(key, known)]
    if not found:
        raise CheckpointError(
            f"{path.name} is a LoRA for another model: none of its {len(named)} tensors, such as "
            f"{next(iter(tensors))}, belongs to a layer of this one. Choose a LoRA for Wan 2.1 of the same size."
        )
    if left:
        LOGGER.warning(
            "%d of %d tensors of %s, such as %s, fit no layer of this model.",
            *(len(left), len(named), path.name, left[0]),
        )
    beside, patches = {}, {}
    for key, patch in found.items():
        name, _, part = key.rpartition(".")
        module = patcher.get_model_object(name) if part == "weight" else None
        if isinstance(patch, comfy.lora.weight_adapter.WeightAdapterBase) and is_linear(module):
            beside[name] = low_rank(patch, name, shape_of(module), path.name)
        else:
            patches[key] = patch
    return Lora(beside, patches)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """A file's tensors. Raises CheckpointError where it holds none by name."""
    content: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
    content = next((content[key] for key in TRAINED if key in content), content)
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} has no named tensors, so it is not a LoRA. Choose another file.")
    return tensors


def wan_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names that ComfyUI's tables know, from those of PEFT, diffusers or Wan's own trainers."""
    flat = {key: tensor for key, tensor in tensors.items() if key.startswith(_FLAT)}
    dotted = {_PREFIXES.sub("", _WRAPPED.sub("", key)): t for key, t in tensors.items() if key not in flat}
    return flat | {f"{PREFIX}{key}": tensor for key, tensor in normalise(dotted).items()}


def _has_place(key: str, known: Mapping[str, str]) -> bool:
    """Whether a LoRA's tensor belongs to one of the `known` layers: its name starts with that of one."""
    parts = key.split(".")
    return any(".".join(parts[:count]) in known for count in range(1, len(parts)))


def is_linear(module: Any) -> bool:
    """Whether tokens can be multiplied beside `module`; ComfyUI's linears need not be torch's."""
    return isinstance(module, nn.Module) and hasattr(module, "in_features") and hasattr(module, "out_features")


def shape_of(module: Any) -> tuple[int, int]:
    """Logical [out, in], however the weight is stored."""
    return module.out_features, module.in_features


def low_rank(adapter: Any, name: str, shape: tuple[int, int], file: str) -> LowRank:
    """The matrices of ComfyUI's `adapter`, which must be a plain LoRA for a linear of `shape`."""
    if adapter.name != "lora":
        raise CheckpointError(
            f"{file} is a {adapter.name} adapter, which cannot run beside a layer. Merge it with ComfyUI's Load LoRA."
        )
    up, down, alpha, middle, dora, reshape = adapter.weights
    if not (middle is None and dora is None and reshape is None):
        raise CheckpointError(
            f"{file} does more to {name} than add a product of two matrices (DoRA, or a convolution between them), "
            "so it cannot run beside the layer. Merge it with ComfyUI's Load LoRA."
        )
    if up.ndim < 2 or down.ndim < 2 or (len(up), down[0].numel()) != shape or up[0].numel() != len(down):
        raise CheckpointError(
            f"{file} is a LoRA for another model: {name} has {shape[0]} outputs and {shape[1]} inputs here, but the "
            f"matrices of the LoRA have shapes {tuple(up.shape)} and {tuple(down.shape)}."
        )
    return LowRank(up.flatten(1), down.flatten(1), 1.0 if alpha is None else alpha / len(down))

"""Our models and ComfyUI's: a MODEL from a checkpoint and back, in any ComfyUI that has Wan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models as families
import torch
from torch import Tensor

from ..qarvd.checkpoint.model import Model, assemble, read_metadata, state_tensors
from ..qarvd.checkpoint.quantized import FORMATS, MARKER, declared
from ..qarvd.errors import CheckpointError, SettingError
from ..qarvd.log import warn_once
from ..qarvd.recipe import STOCK, Recipe
from ..qarvd.stream.presets import PRESETS, find_preset
from ..qarvd.wan.config import WanConfig
from . import layout
from .linears import operations

ATTACHMENT = "qarvd"
AUTOMATIC = "automatic"
"""The choice of a family that leaves it to the model."""
DEMO = "demo"
"""The family of the bundled model."""
PREFIX = "diffusion_model."


@dataclass(frozen=True)
class About:
    """What a MODEL of ours knows of itself beyond its tensors; it travels with the MODEL and its clones."""

    family: str
    quantized: bool = False
    recipe: Recipe | None = None
    """Unknown of a quantized file that ComfyUI's own Save node wrote."""
    notes: Mapping[str, object] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """The dtype in which the file held each tensor."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """The format in which the file held each quantized linear."""


def patcher_of(model: Model) -> Any:
    """A ComfyUI MODEL that shares the tensors of `model`."""
    tensors = state_tensors(model)
    reason = layout.register() if model.quantized else None
    if reason is not None:
        warn_once(f"Quantized linears are loaded by this pack's own operations: {reason}.")
    options = {"custom_operations": operations()} if reason is not None else {}
    metadata = {"config": json.dumps({"transformer": model.config.transformer_metadata()})}
    if hasattr(families, "WAN21_CausalAR_T2V"):  # such a ComfyUI reads the model's dimensions from the metadata
        patcher = comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata=metadata)
    else:
        patcher = build(model.config, tensors, options.get("custom_operations"))
    about = About(model.preset_name, model.quantized, model.recipe, model.notes, model.dtypes, model.formats)
    patcher.set_attachments(ATTACHMENT, about)
    return patcher


def build(config: WanConfig, tensors: dict[str, Tensor], custom_operations: Any | None) -> Any:
    """A MODEL in a ComfyUI that guesses heads, text and time dimensions, which are right for Wan's own sizes only."""
    found = families.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "qk_norm": True,
            "cross_attn_norm": True,
            "window_size": (-1, -1),
            **{name: getattr(config, name) for name in CONSTRUCTOR},
        }
    )
    device, offload = management.get_torch_device(), management.unet_offload_device()
    floats = [t for t in tensors.values() if t.is_floating_point()]
    parameters, kinds = sum(t.numel() for t in tensors.values()), list(found.supported_inference_dtypes)
    weight_dtype = max(floats, key=lambda t: t.numel()).dtype
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=kinds, weight_dtype=weight_dtype)
    found.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, kinds))
    found.custom_operations = custom_operations
    model = found.get_model(tensors, "").to(offload)
    model.load_model_weights(tensors, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


CONSTRUCTOR = (
    *("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len", "freq_dim"),
    *("in_dim", "out_dim", "patch_size", "eps"),
)
"""Dimensions that ComfyUI's Wan model is constructed with, by our names and its."""


def about(patcher: Any) -> About | None:
    """What a MODEL of ours knows of itself; None for one of another loader."""
    found = patcher.get_attachment(ATTACHMENT)
    return found if isinstance(found, About) else None


def family_in_file(patcher: Any) -> str | None:
    """What the file of a MODEL says of its family, where ComfyUI's own loader remembers the file (from 0.27 on)."""
    _, arguments, *_ = getattr(patcher, "cached_patcher_init", None) or (None, ())
    path = Path(arguments[0]) if arguments and isinstance(arguments[0], str) else None
    family = None if path is None else read_metadata(path).get("preset")
    return family if isinstance(family, str) and family in PRESETS else None


def with_family(patcher: Any, family: str) -> Any:
    """A clone of a MODEL, as any loader gives it, that knows its family; one that does keeps what it knows."""
    config_of(patcher)
    find_preset(family)
    clone = patcher.clone()
    clone.set_attachments(ATTACHMENT, about(patcher) or About(family))
    return clone


def family_of(patcher: Any, chosen: str = AUTOMATIC) -> str:
    """The family of a MODEL, or the one that was chosen for it. Raises SettingError where neither is known."""
    config_of(patcher)
    ours = about(patcher)
    known = family_in_file(patcher) if ours is None else ours.family
    if chosen != AUTOMATIC:
        find_preset(chosen)
        if known is not None and chosen != known:
            elsewhere = "" if ours is None else ", or change it on the node that loads the MODEL"
            raise SettingError(
                f"The family of this MODEL is {known!r}, but {chosen!r} was chosen. Set family to "
                f"{AUTOMATIC}{elsewhere}."
            )
        if chosen == DEMO and known is None:
            raise SettingError(
                f"The family {DEMO!r} is for the bundled demo model, and this MODEL is another one. Choose its own "
                "family."
            )
        return chosen
    if known is None:
        raise SettingError(
            "The family of this MODEL is not known (ComfyUI's own Save node drops it). Load it with Load AR Model, or "
            f"choose its family on this node: {', '.join(PRESETS)}."
        )
    return known


def config_of(patcher: Any) -> WanConfig:
    """The dimensions of a MODEL. Raises SettingError where it is no Wan text-to-video model."""
    tree = patcher.model.diffusion_model
    if not hasattr(tree, "blocks") or getattr(tree, "model_type", None) != "t2v":
        raise SettingError(
            f"This MODEL is a {type(tree).__name__}, but a Wan text-to-video model is needed. Load an autoregressive "
            "checkpoint (Self-Forcing, Causal-Forcing, CausVid, LongLive) with Load AR Model."
        )
    values = {name: getattr(tree, name) for name in CONSTRUCTOR}
    if values["in_dim"] != values["out_dim"]:
        raise SettingError(
            f"This Wan model takes {values['in_dim']} channels and returns {values['out_dim']}. Only text-to-video "
            "models, which take as many as they return, can be streamed."
        )
    return WanConfig(**{**values, "patch_size": tuple(values["patch_size"])})


def library_model(patcher: Any, family: str = AUTOMATIC) -> Model:
    """The library's model of a MODEL, patches (a merged LoRA) included; the MODEL itself is not changed by its use.

    Raises SettingError for patches that cannot be merged into weights.
    """
    name, config = family_of(patcher, family), config_of(patcher)
    if others := sorted(key for key in patcher.object_patches if key.startswith(PREFIX)):
        raise SettingError(
            f"This MODEL has a change that cannot be merged into its weights ({others[0]}). Remove LoRA Side Branch, "
            "or use a LoRA loader that merges."
        )
    known = about(patcher) or About(name)
    if known.quantized and patcher.patches:
        raise SettingError("This quantized MODEL has a LoRA on it. Remove the LoRA, or merge it before you quantize.")
    take_back(patcher)
    stored = patcher.model.diffusion_model.state_dict()
    if not known.quantized:
        refuse_quantized(stored)
    tensors = {key: merged(patcher, key, value) for key, value in stored.items()}
    found = assemble(tensors, config.transformer_metadata(), name, known.recipe, known.notes)
    dtypes = {key: known.dtypes.get(key, dtype) for key, dtype in found.dtypes.items()}
    return replace(found, dtypes=dtypes, formats=known.formats)


def refuse_quantized(stored: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, saying what to do, for tensors of a MODEL that another loader made of a quantized file."""
    formats = {declared(tensor).get("format") for key, tensor in stored.items() if key.endswith(f".{MARKER}")}
    if formats & {*FORMATS, *STOCK}:
        raise CheckpointError(
            f"This MODEL is quantized as {' and '.join(sorted(map(str, formats)))}, but came from another loader, "
            "which does not tell how it was made. Load its file with Load AR Model; or, to quantize it anew, start "
            "from the full-precision checkpoint."
        )
    if formats:
        raise CheckpointError(
            f"This MODEL is quantized as {' and '.join(sorted(map(str, formats)))}, a format that qarvd streams but "
            "neither quantizes further nor saves: start from the full-precision checkpoint."
        )


def take_back(patcher: Any) -> None:
    """Have ComfyUI unload a MODEL and its clones, which puts back every weight that a run had patched in place."""
    with torch.inference_mode():  # in which ComfyUI patched them
        for loaded in list(management.current_loaded_models):
            if loaded.model is not None and patcher.is_clone(loaded.model):
                loaded.model_unload()
                management.current_loaded_models.remove(loaded)


def merged(patcher: Any, key: str, weight: Tensor) -> Tensor:
    """A weight as a copy in main memory that no one else sees, with the MODEL's patches added; integers are shared."""
    if not weight.is_floating_point():
        return weight.detach()
    patches = patcher.patches.get(f"{PREFIX}{key}")
    if patches:
        wide = weight.to(torch.float32, copy=True)
        return comfy.lora.calculate_weight(patches, wide, f"{PREFIX}{key}").to("cpu", weight.dtype)
    # Nodes run in inference mode, whose tensors no gradient can pass; a copy made outside of it is an ordinary one.
    return weight.detach().to("cpu", copy=True)

"""Published checkpoints wrap and prefix their tensors in many ways; what is left here is Wan's own naming."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError

WRAPPERS = ("generator_ema", "generator", "model", "state_dict")
"""Keys under which training code nests the weights, the better one first."""

_WRAPPED = re.compile(r"(_fsdp_wrapped_module\.|_orig_mod\.)")
_PREFIX = re.compile(r"^(?:model\.diffusion_model\.|diffusion_model\.|model\.)")

_DIFFUSERS = (
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)


def unwrap(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost mapping of tensors of a training checkpoint."""
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping):
            return unwrap(inner)
    return content


def normalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename to Wan's own names. Raises CheckpointError where two tensors would get one name."""
    diffusers = any(".attn1." in key for key in tensors)
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = _PREFIX.sub("", _WRAPPED.sub("", key))
        if diffusers:
            for pattern, replacement in _DIFFUSERS:
                name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise CheckpointError(
                f"Two tensors of the file are both called {name} without their prefixes; the file holds two models, or "
                "is damaged."
            )
        renamed[name] = tensor
    return renamed

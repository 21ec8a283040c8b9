"""What users bring beside a model, in safetensors files: embeddings of prompts, and latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, PromptError
from ..files import has_suffix
from .read import read

COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Floats that torch only stores."""


def read_embeddings(name: str) -> Tensor:
    """Embeddings [prompts, tokens, text_dim] from a file of one prompt or several, or those of one: `FILE#2`.

    The file holds one tensor, or one called text_embeds, [tokens, text_dim] or [prompts, tokens, text_dim]. Raises
    PromptError or CheckpointError for anything else.
    """
    path, number = numbered(name)
    if not has_suffix(path, ".safetensors"):
        raise PromptError(
            f"{name!r} is text, but this model takes encoded prompts: `python -m qarvd encode` makes a safetensors "
            "file of them."
        )
    tensor = one_tensor(path, "text_embeds")
    if tensor.ndim not in (2, 3):
        raise CheckpointError(
            f"{path} holds a tensor of shape {tuple(tensor.shape)}; embeddings are [tokens, text_dim]."
        )
    found = tensor[None] if tensor.ndim == 2 else tensor
    if number is None:
        return found
    if not 1 <= number <= len(found):
        raise PromptError(f"{name} asks for prompt {number} of {path}, which holds {len(found)}.")
    return found[number - 1 : number]


def read_one_prompt(name: str) -> Tensor:
    """Embeddings [1, tokens, text_dim] as `read_embeddings` finds them. Raises PromptError for several prompts."""
    found = read_embeddings(name)
    if len(found) > 1:
        raise PromptError(
            f"{name} holds {len(found)} prompts, but a video has one at a time: add the number of the one you want, "
            f"from '{name}#1' to '{name}#{len(found)}'."
        )
    return found


def read_prompt_list(path: Path) -> Tensor:
    """The tensor `text_embeds` [prompts, tokens, text_dim] of a file. Raises CheckpointError for anything else."""
    tensor = one_tensor(path, "text_embeds")
    if tensor.ndim != 3:
        raise CheckpointError(
            f"{path} holds text_embeds of shape {tuple(tensor.shape)}; [prompts, tokens, text_dim] was expected."
        )
    return tensor


def read_latents(path: Path) -> Tensor:
    """Latents [batch, channels, frames, height, width] from a file of one tensor, or of one called latents."""
    tensor = one_tensor(path, "latents")
    if tensor.ndim != 5:
        raise CheckpointError(f"{path} holds a tensor of shape {tuple(tensor.shape)}; latents have five axes.")
    return tensor


def one_tensor(path: Path, key: str) -> Tensor:
    """The tensor `key`, or the only one, of a file, as `finite_floats`."""
    tensors = read(path).tensors
    if key not in tensors and len(tensors) != 1:
        raise CheckpointError(f"{path} holds {len(tensors)} tensors and none is called {key!r}.")
    return finite_floats(tensors.get(key, next(iter(tensors.values()))), path)


def finite_floats(tensor: Tensor, path: Path) -> Tensor:
    """`tensor` in a dtype that torch computes in: 8-bit floats become float32.

    Raises CheckpointError, naming the file, for numbers of other kinds, none at all, and NaN or infinite ones.
    """
    what = f"{path} holds a tensor {tuple(tensor.shape)}"
    if tensor.dtype not in (*COMPUTED, *NARROW):
        raise CheckpointError(f"{what} of {tensor.dtype}; float16, bfloat16 or float32 was expected. Convert it.")
    if not tensor.numel():
        raise CheckpointError(f"{what}, which is empty.")
    found = tensor.float() if tensor.dtype in NARROW else tensor
    if not torch.isfinite(found).all():
        raise CheckpointError(f"{what} with NaN or infinite values; make the file again.")
    return found


def numbered(name: str) -> tuple[Path, int | None]:
    """The file and the number of the prompt that a name such as `prompts.safetensors#2` tells."""
    file, mark, number = name.rpartition("#")
    if mark and number.isdecimal() and not Path(name).is_file():
        return Path(file), int(number)
    return Path(name), None

"""The causal Wan forward pass, over any module tree with Wan's attribute names (ours or ComfyUI's)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .config import WanConfig
from .rope import grid_rotation, rotate

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Self-attention of one block: (block index, query, key, value), each [batch, heads, tokens, head_dim]."""

TextCache = Sequence[tuple[Tensor, Tensor]]
"""Cross-attention keys and values of each block, [batch, heads, text_len, head_dim]."""


def encode_text(tree: Any, config: WanConfig, embeddings: Tensor) -> TextCache:
    """Run the text through every block's cross-attention projections, once per prompt.

    `embeddings` [batch, tokens, text_dim] are zero-padded to `text_len`; as published, the padding takes
    part in attention. Raises ShapeError for embeddings of another model.
    """
    if embeddings.ndim != 3 or embeddings.shape[2] != config.text_dim or embeddings.shape[1] > config.text_len:
        raise ShapeError(
            f"The prompt embeddings have shape {tuple(embeddings.shape)}; this model takes "
            f"[batch, at most {config.text_len} tokens, {config.text_dim}]. Encode the prompt with its text encoder."
        )
    padded = F.pad(embeddings, (0, 0, 0, config.text_len - embeddings.shape[1]))
    text = tree.text_embedding(padded)  # [batch, text_len, dim]
    cache = []
    for block in tree.blocks:
        attention = block.cross_attn
        key, value = apply_linears(text, attention.k, attention.v)
        cache.append((_heads(attention.norm_k(key), config), _heads(value, config)))
    return cache


def predict(
    tree: Any,
    config: WanConfig,
    latents: Tensor,
    timesteps: Tensor,
    text: TextCache,
    attend: Attend,
    positions: Tensor,
) -> Tensor:
    """Predict the flow velocity, noise minus clean, of the same shape as `latents`.

    `latents` [batch, channels, frames, height, width]; `timesteps` [batch, frames] on the scale 0..1000;
    `positions` [frames], the absolute latent frame index of each frame; `attend` owns the key/value cache.
    """
    x = tree.patch_embedding(latents)  # [batch, dim, frames, rows, columns]
    batch, _, frames, rows, columns = x.shape
    x = x.flatten(3).permute(0, 2, 3, 1)  # [batch, frames, tokens per frame, dim]
    turn = grid_rotation(positions, rows, columns, config.head_dim)  # [tokens, head_dim / 2, 2]

    wave = time_wave(timesteps.flatten(), config.freq_dim).to(x.dtype)
    time = tree.time_embedding(wave)  # [batch * frames, dim]
    shifts = tree.time_projection(time).unflatten(-1, (6, -1)).unflatten(0, (batch, frames))

    for index, block in enumerate(tree.blocks):
        m = (block.modulation.to(x) + shifts).unsqueeze(3).unbind(2)  # six of [batch, frames, 1, dim]

        attention = block.self_attn
        query, key, value = apply_linears(block.norm1(x) * (1 + m[1]) + m[0], attention.q, attention.k, attention.v)
        query = rotate(_heads(attention.norm_q(query), config), turn)
        key = rotate(_heads(attention.norm_k(key), config), turn)
        mixed = attend(index, query, key, _heads(value, config))
        x = x + attention.o(_tokens(mixed, x)) * m[2]

        attention = block.cross_attn
        query = _heads(attention.norm_q(attention.q(block.norm3(x))), config)
        mixed = F.scaled_dot_product_attention(query, *text[index])
        x = x + attention.o(_tokens(mixed, x))

        x = x + block.ffn(block.norm2(x) * (1 + m[4]) + m[3]) * m[5]

    head = tree.head
    m = (head.modulation.to(x) + time.unflatten(0, (batch, frames)).unsqueeze(2)).unsqueeze(3).unbind(2)
    patches = head.head(head.norm(x) * (1 + m[1]) + m[0])
    return _unpatchify(patches, config, rows, columns)


def time_wave(timesteps: Tensor, freq_dim: int) -> Tensor:
    """Sinusoidal embedding of `timesteps` [n] -> [n, freq_dim], float64 (cosines first, as in Wan)."""
    half = freq_dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
    angle = timesteps.to(torch.float64)[:, None] * 10_000.0**-exponent
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def apply_linears(x: Tensor, *linears: Any) -> list[Tensor]:
    """Apply linears that read the same input; quantized ones with one split share its quantization."""
    share = getattr(linears[0], "share_input", None)
    shared = share(x, linears) if share else x
    return [linear(shared) for linear in linears]


def _heads(x: Tensor, config: WanConfig) -> Tensor:
    """[batch, ..., dim] -> [batch, heads, tokens, head_dim]."""
    return x.reshape(x.shape[0], -1, config.num_heads, config.head_dim).transpose(1, 2)


def _tokens(x: Tensor, like: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] -> the shape of `like`."""
    return x.transpose(1, 2).reshape(like.shape)


def _unpatchify(patches: Tensor, config: WanConfig, rows: int, columns: int) -> Tensor:
    """[batch, frames, rows * columns, patch volume * channels] -> [batch, channels, frames, height, width]."""
    t, h, w = config.patch_size
    grid = patches.unflatten(3, (t, h, w, config.out_dim)).unflatten(2, (rows, columns))
    return grid.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

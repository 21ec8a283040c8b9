"""The causal Wan forward pass, over any module tree with Wan's attribute names (ours or ComfyUI's)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from ..float64 import float64_device, to_float64
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
    text = tree.text_embedding(pad_text(config, embeddings))  # [batch, text_len, dim]
    return [text_pair(block, config, text) for block in tree.blocks]


def pad_text(config: WanConfig, embeddings: Tensor) -> Tensor:
    """Zero-pad to [batch, text_len, text_dim]. Raises ShapeError for embeddings of another model."""
    if embeddings.ndim != 3 or embeddings.shape[2] != config.text_dim or embeddings.shape[1] > config.text_len:
        raise ShapeError(
            f"The prompt embeddings have shape {tuple(embeddings.shape)}; this model takes "
            f"[batch, at most {config.text_len} tokens, {config.text_dim}]. Encode the prompt with its text encoder."
        )
    return F.pad(embeddings, (0, 0, 0, config.text_len - embeddings.shape[1]))


def text_pair(block: Any, config: WanConfig, text: Tensor) -> tuple[Tensor, Tensor]:
    """One block's cross-attention key and value of `text` [batch, text_len, dim]."""
    attention = block.cross_attn
    key, value = apply_linears(text, attention.k, attention.v)
    return _heads(attention.norm_k(key), config), _heads(value, config)


@dataclass(frozen=True)
class Embedded:
    """A model call's input: `tokens` [batch, frames, tokens per frame, dim], and what all blocks take beside them."""

    tokens: Tensor
    rotation: Tensor
    """Rotation of each token, [frames * tokens per frame, head_dim / 2, 2]."""
    time: Tensor
    """[batch, frames, dim]."""
    modulation: Tensor
    """Six of the time's modulation vectors, [batch, frames, 6, dim]."""
    grid: tuple[int, int]
    """Rows and columns of a frame's tokens."""


@dataclass(frozen=True)
class Branch:
    """One residual branch of a block: x + gate * out(mix(*ins(norm(x)))), all linears in `ins` and `out`, by name."""

    ins: tuple[str, ...]
    out: str
    norm: Callable[[Tensor], Tensor]
    mix: Callable[..., Tensor]
    gate: Tensor | None

    def add_to(self, x: Tensor, output: Tensor) -> Tensor:
        """`x` with the branch's `output` added."""
        return x + (output if self.gate is None else output * self.gate)


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
    inputs = embed(tree, config, latents, timesteps, positions)
    x = inputs.tokens
    for index, block in enumerate(tree.blocks):
        x = run_block(block, config, inputs, text[index], partial(attend, index), x)
    return run_head(tree, config, inputs, x)


def times_and_positions(latents: Tensor, timestep: float, start: int) -> tuple[Tensor, Tensor]:
    """What `predict` takes with `latents` that all have one `timestep`, the first frame being latent frame `start`."""
    batch, _, frames, *_ = latents.shape
    device = float64_device(latents.device)
    times = torch.full((batch, frames), timestep, dtype=torch.float64, device=device)
    return times, torch.arange(start, start + frames, device=device)


def embed(tree: Any, config: WanConfig, latents: Tensor, timesteps: Tensor, positions: Tensor) -> Embedded:
    """What comes before the blocks; arguments as in `predict`."""
    wide = torch.promote_types(latents.dtype, tree.patch_embedding.weight.dtype)  # ComfyUI keeps it in float32
    x = tree.patch_embedding(latents.to(wide)).to(latents.dtype)  # [batch, dim, frames, rows, columns]
    batch, _, frames, rows, columns = x.shape
    x = x.flatten(3).permute(0, 2, 3, 1)  # [batch, frames, tokens per frame, dim]
    rotation = grid_rotation(positions, rows, columns, config.head_dim).to(x.device)

    wave = time_wave(timesteps.flatten(), config.freq_dim).to(x.dtype).to(x.device)
    time = tree.time_embedding(wave)  # [batch * frames, dim]
    modulation = tree.time_projection(time).unflatten(-1, (6, -1)).unflatten(0, (batch, frames))
    return Embedded(x, rotation, time.unflatten(0, (batch, frames)), modulation, (rows, columns))


def run_block(
    block: Any,
    config: WanConfig,
    inputs: Embedded,
    text: tuple[Tensor, Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """Run one block on `x` [batch, frames, tokens per frame, dim]."""
    for branch in branches(block, config, inputs, text, attend):
        linears = [block.get_submodule(name) for name in branch.ins]
        mixed = branch.mix(*apply_linears(branch.norm(x), *linears))
        x = branch.add_to(x, block.get_submodule(branch.out)(mixed))
    return x


def run_head(tree: Any, config: WanConfig, inputs: Embedded, x: Tensor) -> Tensor:
    """What comes after the blocks: the predicted velocity [batch, channels, frames, height, width]."""
    head = tree.head
    m = (head.modulation.to(x) + inputs.time.unsqueeze(2)).unsqueeze(3).unbind(2)
    patches = head.head(head.norm(x) * (1 + m[1]) + m[0])
    return _unpatchify(patches, config, *inputs.grid)


def branches(
    block: Any,
    config: WanConfig,
    inputs: Embedded,
    text: tuple[Tensor, Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Iterator[Branch]:
    """Self-attention, cross-attention and feed-forward of one block, in the order in which they run."""
    m = (
        (block.modulation.to(inputs.tokens) + inputs.modulation).unsqueeze(3).unbind(2)
    )  # six of [batch, frames, 1, dim]

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layer = block.self_attn
        rotated_query = rotate(_heads(layer.norm_q(query), config), inputs.rotation)
        rotated_key = rotate(_heads(layer.norm_k(key), config), inputs.rotation)
        return _tokens(attend(rotated_query, rotated_key, _heads(value, config)), query)

    def cross_attention(query: Tensor) -> Tensor:
        heads = _heads(block.cross_attn.norm_q(query), config)
        return _tokens(F.scaled_dot_product_attention(heads, *text), query)

    yield Branch(
        ("self_attn.q", "self_attn.k", "self_attn.v"),
        "self_attn.o",
        lambda x: block.norm1(x) * (1 + m[1]) + m[0],
        attention,
        m[2],
    )
    yield Branch(("cross_attn.q",), "cross_attn.o", block.norm3, cross_attention, None)
    yield Branch(("ffn.0",), "ffn.2", lambda x: block.norm2(x) * (1 + m[4]) + m[3], block.ffn[1], m[5])


def time_wave(timesteps: Tensor, freq_dim: int) -> Tensor:
    """Sinusoidal embedding of `timesteps` [n] -> [n, freq_dim], float64 (cosines first, as in Wan)."""
    half, times = freq_dim // 2, to_float64(timesteps)
    exponent = torch.arange(half, dtype=torch.float64, device=times.device) / half
    angle = times[:, None] * 10_000.0**-exponent
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

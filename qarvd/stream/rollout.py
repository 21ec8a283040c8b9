"""Start a stream from a model, its text, and seeds or noise: the few lines that every caller would write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError, ShapeError
from ..wan.config import WanConfig
from ..wan.forward import encode_text, pad_text
from .cache import KVCache
from .noise import NoiseSource, from_seeds
from .presets import Preset
from .sampler import NO_PROMPTS, Chunk, Denoiser, Step, check_prompts, frame_tokens, spans, stream
from .schedule import Schedule


def check_guidance(scale: float) -> None:
    """Raise SettingError for classifier-free guidance, which distilled models have built in."""
    if scale != 1:
        raise SettingError(
            f"cfg {scale} was asked for, but autoregressive models are distilled and run without guidance: use cfg 1."
        )


@torch.no_grad()
def roll_out(
    tree: Any,
    config: WanConfig,
    preset: Preset,
    embeddings: Tensor,
    size: tuple[int, int],
    frames: int | None,
    seeds: Sequence[int],
    cache: KVCache | None = None,
    initial: Tensor | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    schedule: Schedule | None = None,
    prompts: Mapping[int, Tensor] = NO_PROMPTS,
) -> Iterator[Chunk]:
    """Stream `frames` latent frames (None: endless) of `size` (height, width), one sample per seed.

    `embeddings` [batch, tokens, text_dim] decide device and dtype; `initial` [batch, channels, frames, height, width]
    are clean latents to go on from; their frames are not yielded. `schedule` replaces the preset's. `prompts`, each as
    `embeddings`, take over at the generated chunk of their index, from 1 on.
    """
    for text in (embeddings, *prompts.values()):
        if len(seeds) != len(text):
            raise ShapeError(f"Give one seed for each prompt; {len(seeds)} for {len(text)} were given.")
    check_prompts(prompts, None if frames is None else -(-frames // preset.chunk_frames))
    frame_tokens(config, *size)  # refuses a size that does not divide, before the text is encoded
    before = 0 if initial is None else initial.shape[2]
    if initial is not None and initial.shape[:2] + initial.shape[3:] != (len(seeds), config.in_dim, *size):
        raise ShapeError(
            f"The initial latents have shape {tuple(initial.shape)}; {(len(seeds), config.in_dim, 'frames', *size)} is "
            "needed."
        )
    chunks = spans(frames, preset.chunk_frames, before)
    if cache is None:
        cache = preset.cache(None if frames is None else before + frames)
    draw: NoiseSource = from_seeds(seeds, embeddings.device, embeddings.dtype)
    noise = (draw((len(seeds), config.in_dim, len(span), *size)) for span in chunks)
    schedule = schedule or preset.schedule
    return roll_out_from(tree, config, embeddings, noise, draw, schedule, cache, initial, on_step, prompts)


@torch.no_grad()
def roll_out_from(
    tree: Any,
    config: WanConfig,
    embeddings: Tensor,
    noise: Iterable[Tensor],
    fresh_noise: NoiseSource,
    schedule: Schedule,
    cache: KVCache,
    initial: Tensor | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    prompts: Mapping[int, Tensor] = NO_PROMPTS,
) -> Iterator[Chunk]:
    """As `roll_out`, from `noise` that is at hand: a tensor [batch, channels, frames, height, width] for each chunk.

    `fresh_noise` is drawn between steps; `initial` latents are cut into chunks as `cache` has them.
    """
    given = () if initial is None else initial.to(embeddings).split(cache.chunk_frames, dim=2)
    denoiser = Denoiser(tree, config, encode_text(tree, config, embeddings), cache)
    later = {len(given) + index: pad_text(config, text.to(embeddings)) for index, text in prompts.items()}
    return stream(denoiser, noise, schedule, fresh_noise, given, on_step, later)

"""Streaming sampling: denoise a chunk, write it clean into the cache, go on; a generator from start to end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError, ShapeError
from ..float64 import to_float64
from ..wan.config import WanConfig
from ..wan.forward import TextCache, encode_text, predict, times_and_positions
from .cache import KVCache
from .noise import NoiseSource
from .schedule import Schedule

NO_PROMPTS: Mapping[int, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Chunk:
    """Latent frames generated together: `latents` [batch, channels, frames, height, width], clean."""

    index: int
    start: int
    latents: Tensor


@dataclass(frozen=True)
class Step:
    """One model call; the one that fills the cache is the last of its chunk."""

    chunk: int
    index: int
    timestep: float
    start: int
    """The chunk's first latent frame."""
    latents: Tensor
    """What the model is given, [batch, channels, frames, height, width]."""
    clean: Tensor
    """Its prediction of the finished chunk."""


@dataclass(frozen=True)
class Denoiser:
    """A model tree with the text and the cache of one stream."""

    tree: Any
    config: WanConfig
    text: TextCache
    cache: KVCache

    def velocity(self, latents: Tensor, timestep: float, start: int) -> Tensor:
        """Predicted velocity of the chunk that starts at latent frame `start`; its slot in the cache is overwritten."""
        begin_chunk(self.cache, self.config, latents, start)
        times, positions = times_and_positions(latents, timestep, start)
        return predict(self.tree, self.config, latents, times, self.text, self.cache.attend, positions)


def begin_chunk(cache: KVCache, config: WanConfig, latents: Tensor, start: int) -> None:
    """Place the chunk `latents` [batch, channels, frames, height, width], of latent frame `start`, in the cache."""
    frames, height, width = latents.shape[2:]
    cache.begin(start, frames, frame_tokens(config, height, width))


def frame_tokens(config: WanConfig, height: int, width: int) -> int:
    """Tokens of a latent frame. Raises ShapeError where it does not divide into patches."""
    _, rows, columns = config.patch_size
    if height % rows or width % columns:
        raise ShapeError(
            f"Latents of {height}x{width} do not divide into patches of {rows}x{columns}; their height and width must "
            f"be multiples of {rows} and {columns} (with Wan's VAE, of {8 * rows} and {8 * columns} pixels)."
        )
    return height * width // (rows * columns)


def spans(frames: int | None, chunk_frames: int, start: int = 0) -> Iterator[range]:
    """Cut latent frames into chunks; the last may be shorter; `frames=None` never ends."""
    if chunk_frames < 1 or (frames is not None and frames < 1):
        raise SettingError(f"{frames} latent frames in chunks of {chunk_frames}: both must be at least 1.")
    if frames is None:
        return (range(f, f + chunk_frames) for f in count(start, chunk_frames))
    end = start + frames
    return (range(f, min(f + chunk_frames, end)) for f in range(start, end, chunk_frames))


def check_prompts(chunks: Iterable[int], count: int | None) -> None:
    """Raise SettingError unless prompts can change at these of `count` generated chunks (None: endless), from 0."""
    for index in chunks:
        if index < 1:
            raise SettingError(f"A prompt can't change at chunk {index + 1}; the first change can be at chunk 2.")
        if count is not None and index >= count:
            raise SettingError(
                f"A prompt can't change at chunk {index + 1}, because the video ends with chunk {count}."
            )


@torch.no_grad()
def stream(
    denoiser: Denoiser,
    noise: Iterable[Tensor],
    schedule: Schedule,
    fresh_noise: NoiseSource,
    initial: Iterable[Tensor] = (),
    on_step: Callable[[Step], None] = lambda step: None,
    prompts: Mapping[int, Tensor] = NO_PROMPTS,
) -> Iterator[Chunk]:
    """Yield clean chunks, oldest first, one for each tensor of `noise` [batch, channels, frames, height, width].

    `initial` chunks (an encoded image, the end of an earlier clip) are written into the cache and not yielded.
    `fresh_noise` is drawn between steps. A chunk is handed over before the pass that writes it into the cache, which is
    for the next one; the last chunk has none. `on_step` sees every model call and may raise to stop.

    `prompts` [batch, tokens, text_dim] take over from the denoiser's text, each from the chunk of its index on, initial
    chunks counted. As in LongLive, the window is then written anew with the new prompt, and the sink stays as it is;
    of a chunk that lies partly in the sink, the rest is kept, or forgotten where later chunks are written anew.
    """
    denoiser.cache.reset()
    start = index = 0
    window: deque[Chunk] = deque()
    try:
        for latents in initial:
            window.append(Chunk(index, start, latents))
            write(denoiser, window[-1], schedule, on_step, given=True)
            start, index = start + latents.shape[2], index + 1
        given = index
        for x in noise:
            if index > given:
                write(denoiser, window[-1], schedule, on_step)
            while window and window[0].start < denoiser.cache.oldest:
                window.popleft()
            if index in prompts:
                denoiser = replace(denoiser, text=encode_text(denoiser.tree, denoiser.config, prompts[index]))
                if window:
                    denoiser.cache.rewind(window[0].start)
                for chunk in window:
                    write(denoiser, chunk, schedule, on_step, given=chunk.index < given)
            window.append(denoise(denoiser, x, schedule, fresh_noise, index, start, on_step))
            yield window[-1]
            start, index = start + x.shape[2], index + 1
    finally:
        denoiser.cache.reset()


def denoise(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    fresh_noise: NoiseSource,
    index: int,
    start: int,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Chunk:
    """Generate chunk `index`, which starts at latent frame `start`, from its noise `x`."""
    for step, timestep in enumerate(schedule.of_chunk(index)):
        if step:
            x = schedule.add_noise(x, fresh_noise(x.shape), timestep)
        x = call(denoiser, schedule, x, index, step, timestep, start, on_step)
    return Chunk(index, start, x)


def write(
    denoiser: Denoiser,
    chunk: Chunk,
    schedule: Schedule,
    on_step: Callable[[Step], None] = lambda step: None,
    given: bool = False,
) -> None:
    """Write a finished chunk into the cache, for those that follow; one that was `given` has no other call."""
    step, timestep = (0, 0.0) if given else (len(schedule.of_chunk(chunk.index)), schedule.context_noise)
    call(denoiser, schedule, chunk.latents, chunk.index, step, timestep, chunk.start, on_step)


def call(
    denoiser: Denoiser,
    schedule: Schedule,
    latents: Tensor,
    chunk: int,
    step: int,
    timestep: float,
    start: int,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Call the model once: its prediction of the clean chunk."""
    velocity = denoiser.velocity(latents, timestep, start)
    clean = to_float64(latents) - schedule.sigma(timestep) * to_float64(velocity)
    clean = clean.to(latents.dtype).to(latents.device)
    on_step(Step(chunk, step, timestep, start, latents, clean))
    return clean

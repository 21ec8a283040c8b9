"""Roll-outs of the full-precision model, kept call by call; and what quantizing one chunk at a time does to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..float64 import to_float64
from ..stream.cache import KVCache
from ..stream.noise import from_seeds, from_tensors
from ..stream.presets import Preset
from ..stream.sampler import Denoiser, Step, denoise, spans, write
from ..wan.config import WanConfig
from ..wan.forward import encode_text
from .cache_branch import branch_cache


@dataclass(frozen=True)
class Call:
    """One model call of a roll-out; its input is on the full-precision trajectory."""

    chunk: int
    step: int
    """Index within the chunk; the last is the pass that fills the cache."""
    timestep: float
    start: int
    """First latent frame."""
    latents: Tensor
    """[batch, channels, frames, height, width], on the CPU."""


@dataclass(frozen=True)
class Rollout:
    """A batch of clips that share every call."""

    embeddings: Tensor
    """Text, [batch, tokens, text_dim]."""
    calls: tuple[Call, ...]
    """All calls that have an effect, in order: the last chunk's cache-writing call is left out."""

    @property
    def tokens(self) -> int:
        """Latent values of one channel over all calls; a measure of size."""
        return sum(call.latents[:, 0].numel() for call in self.calls)


@dataclass(frozen=True)
class Setting:
    """What clips are generated for calibration."""

    config: WanConfig
    preset: Preset
    size: tuple[int, int]
    """Height and width of the latents."""
    frames: int
    """Latent frames of a clip."""

    @property
    def spans(self) -> list[range]:
        """The latent frames of each chunk."""
        return list(spans(self.frames, self.preset.chunk_frames))

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """Latent frames of each chunk; the last may be shorter."""
        return tuple(map(len, self.spans))

    def cache(self) -> KVCache:
        """An empty cache for one clip."""
        return self.preset.cache(self.frames)


def draw_noise(
    setting: Setting, like: Tensor, seeds: Sequence[int], chunks: int
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The noise that each of the first chunks starts from, and that drawn between its steps, as a stream draws it."""
    draw = from_seeds(seeds, like.device, like.dtype)
    noise, fresh = [], []
    for index, span in enumerate(setting.spans[:chunks]):
        shape = (len(seeds), setting.config.in_dim, len(span), *setting.size)
        noise.append(draw(shape))
        fresh.append([draw(shape) for _ in setting.preset.schedule.of_chunk(index)[1:]])
    return noise, fresh


@torch.no_grad()
def roll_out(
    setting: Setting,
    full: Any,
    embeddings: Tensor,
    seeds: Sequence[int],
    quantized: Any | None = None,
    horizon: Sequence[int] | None = None,
    on_chunk: Callable[[], object] = lambda: None,
) -> tuple[Rollout, Tensor | None]:
    """Generate a batch of clips with the tree `full` and record every call.

    With a `quantized` tree, also measure how much each chunk matters (Q-ARVD, section 3.2): errors float64
    [batch, chunks, chunks], entry [b, k, j] the mean squared error in the final latents of chunk j when the quantized
    tree generates chunk k (its cache-writing pass included) and the full one all others, from the same noise. The
    chunks before k are the same in every run, so each run starts from the full run's cache: K (K + 1) / 2
    chunks are generated for K chunks, where whole runs would take K^2. `horizon` [chunks] ends run k after so many of
    them and leaves 0 for the rest (None: never). `on_chunk` is called for each chunk that is generated.
    """
    schedule, spans_ = setting.preset.schedule, setting.spans
    noise, fresh = draw_noise(setting, embeddings, seeds, len(spans_))

    calls: list[Call] = []

    def record(step: Step) -> None:
        calls.append(Call(step.chunk, step.index, step.timestep, step.start, step.latents.cpu()))

    def generate(
        model: Denoiser, index: int, end: int = len(spans_), on_step: Callable[[Step], None] = lambda step: None
    ) -> Tensor:
        source = from_tensors(fresh[index])
        chunk = denoise(model, noise[index], schedule, source, index, spans_[index].start, on_step)
        if index + 1 < end:
            write(model, chunk, schedule, on_step)
        on_chunk()
        return chunk.latents

    main = Denoiser(full, setting.config, encode_text(full, setting.config, embeddings), setting.cache())
    other = None
    if quantized is not None:
        other = replace(main, tree=quantized, text=encode_text(quantized, setting.config, embeddings))
    clean: list[Tensor] = []
    branches: list[list[Tensor]] = []
    for k in range(len(spans_)):
        if other is not None:
            end = len(spans_) if horizon is None else k + horizon[k]
            with branch_cache(main.cache, setting.frames) as cache:
                branch = [generate(replace(other, cache=cache), k, end)]
                branch += [generate(replace(main, cache=cache), j, end) for j in range(k + 1, end)]
            branches.append(branch)
        clean.append(generate(main, k, on_step=record))
    errors = None
    if other is not None:
        errors = torch.zeros(len(seeds), len(spans_), len(spans_), dtype=torch.float64)
        for k, branch in enumerate(branches):
            for j, latents in enumerate(branch, start=k):
                errors[:, k, j] = (to_float64(latents) - to_float64(clean[j])).square().flatten(1).mean(1).cpu()
    return Rollout(embeddings.cpu(), tuple(calls)), errors

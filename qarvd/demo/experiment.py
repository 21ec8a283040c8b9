"""The demo's experiment: stream variants of one model with the same noise and measure what quantizing cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint.model import Model
from ..quantize.model import weight_bits
from ..stream.rollout import roll_out
from ..stream.sampler import Chunk
from .bundle import LATENT_SIDE, embed
from .judge import digit_correct, motion_correct
from .pixels import DEVIATION, decode
from .prompts import Prompt, split_prompts

PEAK = 1 / DEVIATION
"""Range of the latents: pixels run from 0 to 1, so that PSNR in latents is PSNR in pixels."""


def samples(count: int) -> list[tuple[Prompt, int]]:
    """`count` pairs of a held-out prompt and a seed: 64 prompts with seed after seed."""
    prompts = split_prompts()[1][:64]
    return [(prompts[i % len(prompts)], 1000 + i) for i in range(count)]


def run(
    model: Model, cases: Sequence[tuple[Prompt, int]], chunks: int, batch: int, on_chunk: Callable[[Chunk], object]
) -> Tensor:
    """Stream all cases in batches: latents [samples, 16, frames, 8, 8]."""
    latents = []
    for first in range(0, len(cases), batch):
        parts = []
        for chunk in clip(model, cases[first : first + batch], chunks):
            parts.append(chunk.latents)
            on_chunk(chunk)
        latents.append(torch.cat(parts, dim=2))
    return torch.cat(latents)


def clip(model: Model, cases: Sequence[tuple[Prompt, int]], chunks: int) -> Iterator[Chunk]:
    """Stream the cases in one batch."""
    prompts, seeds = zip(*cases, strict=True)
    frames = chunks * model.preset.chunk_frames
    side = (LATENT_SIDE, LATENT_SIDE)
    return roll_out(model.tree, model.config, model.preset, embed(prompts), side, frames, seeds)


def psnr(latents: Tensor, reference: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB over all samples; None where there is no error."""
    error = (latents - reference).square().mean().item()
    return 10 * math.log10(PEAK**2 / error) if error else None


def chunk_errors(latents: Tensor, reference: Tensor, chunk_frames: int) -> list[float]:
    """Mean squared error of each chunk, in latent units."""
    error = (latents - reference).square().mean((0, 1, 3, 4))
    return [part.mean().item() for part in error.split(chunk_frames)]


@dataclass(frozen=True)
class Verdict:
    """What the judge says of each sample, [samples] fractions of right frames or steps."""

    first: Tensor
    last: Tensor
    digit: Tensor
    motion: Tensor


def judge(reader: nn.Module, latents: Tensor, prompts: Sequence[Prompt], chunk_frames: int) -> Verdict:
    """Judge clips by digit (first chunk, last chunk, all frames) and by motion."""
    pixels = decode(latents)
    digit = digit_correct(reader, pixels, prompts).float()
    motion = motion_correct(pixels, prompts).float()
    return Verdict(digit[:, :chunk_frames].mean(1), digit[:, -chunk_frames:].mean(1), digit.mean(1), motion.mean(1))


def paired_loss(full: Tensor, other: Tensor, groups: int) -> tuple[float, float, float]:
    """Mean loss in points (percent) and its 95 % interval, paired by sample.

    `full` and `other` [samples]; sample i belongs to prompt i mod `groups`, and prompts, not samples, are what the
    interval takes as independent.
    """
    loss = 100 * (full - other)
    if len(loss) > groups:
        loss = torch.stack([loss[g::groups].mean() for g in range(groups)])
    half = 2.0 * loss.std().item() / math.sqrt(len(loss)) if len(loss) > 1 else math.nan
    mean = loss.mean().item()
    return mean, mean - half, mean + half


def metrics(model: Model, latents: Tensor, reference: Tensor, verdict: Verdict) -> dict[str, float | None]:
    """One variant's figures; those against full precision are None for full precision itself."""
    last = slice(-model.preset.chunk_frames, None)
    return {
        "samples": len(latents),
        "weight_bits": round(weight_bits(model.tree), 3),
        "psnr_db": psnr(latents, reference),
        "psnr_last_chunk_db": psnr(latents[:, :, last], reference[:, :, last]),
        "digit_accuracy_first": verdict.first.mean().item(),
        "digit_accuracy_last": verdict.last.mean().item(),
        "motion_accuracy": verdict.motion.mean().item(),
    }

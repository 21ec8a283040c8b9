"""The demo's experiment: stream variants of one model with the same noise and measure what quantizing cost."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.model import Model
from ..ops.linear import QuantizedLinear
from ..stream.rollout import roll_out
from ..stream.sampler import Chunk
from .bundle import LATENT_SIDE, embed
from .judge import digit_correct, motion_correct
from .pixels import DEVIATION, decode
from .prompts import Prompt, split_prompts

PEAK = 1 / DEVIATION
"""Range of the latents: pixels run from 0 to 1, so that PSNR in latents is PSNR in pixels."""


@dataclass(frozen=True)
class Outcome:
    """What one variant generated, and how fast."""

    latents: Tensor
    """[samples, 16, frames, 8, 8]"""
    first_frame_seconds: float
    seconds_per_chunk: float
    peak_memory_bytes: int


def samples(count: int) -> list[tuple[Prompt, int]]:
    """`count` pairs of a held-out prompt and a seed: 64 prompts with seed after seed."""
    prompts = split_prompts()[1][:64]
    return [(prompts[i % len(prompts)], 1000 + i) for i in range(count)]


def run(
    model: Model, cases: Sequence[tuple[Prompt, int]], chunks: int, batch: int, on_chunk: Callable[[Chunk], None]
) -> Outcome:
    """Time one stream by itself, then stream all cases in batches."""
    with peak_memory() as peak:
        arrivals = [time.perf_counter()]
        for _ in clip(model, cases[:1], chunks):
            arrivals.append(time.perf_counter())
    steps = [b - a for a, b in itertools.pairwise(arrivals)]
    latents = []
    for first in range(0, len(cases), batch):
        parts = []
        for chunk in clip(model, cases[first : first + batch], chunks):
            parts.append(chunk.latents)
            on_chunk(chunk)
        latents.append(torch.cat(parts, dim=2))
    return Outcome(torch.cat(latents), steps[0], statistics.median(steps), peak[0])


def clip(model: Model, cases: Sequence[tuple[Prompt, int]], chunks: int) -> Iterator[Chunk]:
    """Stream the cases in one batch."""
    prompts, seeds = zip(*cases, strict=True)
    frames = chunks * model.preset.chunk_frames
    side = (LATENT_SIDE, LATENT_SIDE)
    return roll_out(model.tree, model.config, model.preset, embed(prompts), side, frames, seeds)


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Fill in the process's largest resident size, in bytes, while the body ran."""
    peak = [_resident()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _resident() -> int:
    """Resident bytes of this process; 0 where the system does not tell (it does on Linux)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


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
    half = 1.96 * loss.std().item() / math.sqrt(len(loss)) if len(loss) > 1 else math.nan
    mean = loss.mean().item()
    return mean, mean - half, mean + half


def metrics(model: Model, path: Path, outcome: Outcome, verdict: Verdict, reference: Outcome) -> dict[str, object]:
    """One variant's entry of metrics.json; figures against full precision are None for full precision itself."""
    last = slice(-model.preset.chunk_frames, None)
    return {
        "samples": len(outcome.latents),
        "bytes": path.stat().st_size,
        "weight_bits": round(weight_bits(model), 3),
        "psnr_db": psnr(outcome.latents, reference.latents),
        "psnr_last_chunk_db": psnr(outcome.latents[:, :, last], reference.latents[:, :, last]),
        "digit_accuracy_first": verdict.first.mean().item(),
        "digit_accuracy_last": verdict.last.mean().item(),
        "motion_accuracy": verdict.motion.mean().item(),
        "first_frame_seconds": outcome.first_frame_seconds,
        "seconds_per_chunk": outcome.seconds_per_chunk,
        "peak_memory_bytes": outcome.peak_memory_bytes,
    }


def weight_bits(model: Model) -> float:
    """Stored bits per weight of the linears that a recipe quantizes, scales and outlier lists included."""
    stored = weights = 0
    for module in model.tree.modules():
        if isinstance(module, QuantizedLinear):
            stored += 8 * module.weight.nbytes
            weights += math.prod(module.weight.shape)
    return stored / weights if weights else 16.0

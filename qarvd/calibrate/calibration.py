"""A calibration: recorded roll-outs and the effect of each chunk; collected batch by batch, merged by adding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, PromptError, SettingError
from ..recipe import Recipe
from ..stream.sampler import frame_tokens
from .collect import refusing_overflow
from .frame_weights import FrameWeights, converged
from .horizon import full_horizon
from .rollout import Rollout, Setting, roll_out

BATCH_TOKENS = 1600
"""Tokens of a chunk that are generated together; many small clips at once keep a machine busy."""


@dataclass(frozen=True)
class Calibration:
    """What a model did on some prompts; `a + b` merges those of other prompts."""

    model: str
    """Checksum of the model's tensors."""
    preset_name: str
    size: tuple[int, int]
    """Height and width of the latents."""
    frames: int
    """Latent frames of a clip."""
    rollouts: tuple[Rollout, ...]
    errors: Tensor
    """Of `roll_out`, for as many prompts as were measured: float64 [prompts, chunks, chunks]."""
    horizon: tuple[int, ...]
    """How many chunks were generated with each one quantized, itself included."""
    call_errors: Tensor
    """Of `call_sensitivity.call_errors`, for fewer prompts: float64 [prompts, measured chunks, calls]."""
    measured_as: Recipe | None = None
    """How the tree was quantized with which effects are measured; None: an older file does not say."""

    def __add__(self, other: Calibration) -> Calibration:
        names = ("model", "preset_name", "size", "frames", "horizon", "measured_as")
        if different := [name for name in names if getattr(self, name) != getattr(other, name)]:
            raise SettingError(
                f"Statistics that differ in {', '.join(different)} can't be merged. Calibrate both with the same "
                "settings."
            )
        errors = torch.cat([self.errors, other.errors])
        calls = torch.cat([self.call_errors, other.call_errors])
        return replace(self, rollouts=self.rollouts + other.rollouts, errors=errors, call_errors=calls)

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return sum(len(rollout.embeddings) for rollout in self.rollouts)

    def weights(self, chunk_frames: Sequence[int]) -> FrameWeights:
        """The weight of each chunk; all alike where nothing was measured."""
        if not len(self.errors):
            return FrameWeights.uniform(chunk_frames)
        return FrameWeights.from_errors(self.errors, tuple(chunk_frames), self.horizon)


@dataclass(frozen=True)
class Batch:
    """What came of a few prompts; `errors` where they were measured."""

    rollout: Rollout
    errors: Tensor | None

    @property
    def finite(self) -> bool:
        """Whether neither latents nor errors hold NaN or infinity."""
        tensors = [call.latents for call in self.rollout.calls] + ([] if self.errors is None else [self.errors])
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def collect(
    setting: Setting,
    full: Any,
    quantized: Any | None,
    embeddings: Tensor,
    seed: int,
    most_measured: int,
    horizon: Sequence[int] | None = None,
    recall: Callable[[int], Batch | None] = lambda first: None,
    keep: Callable[[int, Batch], object] = lambda first, batch: None,
    enough: Callable[[int, int], bool] = lambda prompts, upcoming: False,
    on_chunk: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[list[Rollout], Tensor]:
    """Roll out all prompts `embeddings` [prompts, tokens, text_dim], one clip each, in batches.

    While fewer than `most_measured` prompts were measured, and the intervals of the chunks' weights are wider than
    20 %, each chunk's effect is measured too, with the tree `quantized` (None: never), as far as `horizon` (None: to
    the end). `recall` and `keep` find and store a batch by its first prompt; `enough(prompts, upcoming)` may end the
    work early, but not before the first batch, when the next one, of `upcoming` chunks, would join `prompts`. Raises
    CheckpointError, naming the layer, if a roll-out becomes NaN or infinite. `on_chunk(done, total)` counts batches'
    chunks; the total is an estimate that falls if measuring ends early.
    Returns the roll-outs and the errors [measured, chunks, chunks].
    """
    if not len(embeddings):
        raise PromptError("There are no prompts to calibrate with; give at least one, better 24 or more.")
    at_once = batch_prompts(setting)
    rollouts: list[Rollout] = []
    chunks = len(setting.spans)
    errors = torch.zeros(0, chunks, chunks, dtype=torch.float64)
    horizon = horizon or full_horizon(chunks)
    whole, done = chunks + sum(horizon), 0  # chunks of a measured batch; of one that is only recorded: chunks
    starts = range(0, len(embeddings), at_once)
    for number, first in enumerate(starts):
        measuring = quantized is not None and len(errors) < most_measured
        measuring = measuring and not converged(errors, setting.chunk_sizes, horizon)
        if first and enough(first, whole if measuring else chunks):
            break
        measured_later = -(-(most_measured - len(errors)) // at_once) if measuring else 0
        total = done + chunks * (len(starts) - number)
        total += (whole - chunks) * min(measured_later, len(starts) - number)

        def count(total: int = total) -> None:
            nonlocal done
            done += 1
            on_chunk(done, total)

        batch = recall(first)
        if batch is None:
            some = embeddings[first : first + at_once]
            seeds = range(seed + first, seed + first + len(some))
            batch = roll_out_batch(setting, full, quantized if measuring else None, some, seeds, horizon, count)
            keep(first, batch)
        rollouts.append(batch.rollout)
        if batch.errors is not None:
            errors = torch.cat([errors, batch.errors])
    return rollouts, errors


def batch_prompts(setting: Setting) -> int:
    """How many prompts are rolled out together."""
    return max(1, BATCH_TOKENS // (setting.preset.chunk_frames * frame_tokens(setting.config, *setting.size)))


def roll_out_batch(
    setting: Setting,
    full: Any,
    quantized: Any | None,
    embeddings: Tensor,
    seeds: Sequence[int],
    horizon: Sequence[int],
    on_chunk: Callable[[], object],
) -> Batch:
    """Roll out a few prompts. Raises CheckpointError, naming the layer, where that ends in NaN or infinity."""
    embeddings = embeddings.to(full.patch_embedding.weight)
    batch = Batch(*roll_out(setting, full, embeddings, seeds, quantized, horizon, on_chunk))
    if not batch.finite:
        trees = [full] if quantized is None else [full, quantized]
        with refusing_overflow(*trees):  # once more, since looking at every layer takes time
            roll_out(setting, full, embeddings, seeds, quantized, horizon)
        raise CheckpointError(
            "Latents became NaN or infinite in calibration, though no layer's output did. Stream the full-precision "
            "model with the same prompts first."
        )
    return batch

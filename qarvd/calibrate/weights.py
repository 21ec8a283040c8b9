"""Frame weights: how much each chunk matters to the final video (Q-ARVD, section 3.2), with intervals and a fit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError

RESAMPLES = 2000
LEAST_PROMPTS = 4
"""Fewer prompts than this say nothing of their spread."""
WITHIN = 0.2


@dataclass(frozen=True)
class FrameWeights:
    """One weight per chunk, of mean 1: its share of the squared error in all final latents."""

    chunk_frames: tuple[int, ...]
    """Latent frames of each chunk."""
    sensitivity: tuple[float, ...]
    """The published measure: mean squared error of all final latents when this chunk alone is quantized; sums to 1."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """95 % bootstrap interval of each sensitivity, over prompts."""
    per_affected: tuple[float, ...]
    """Mean squared error over the frames from this chunk on, which are all it can affect; in units of the first."""
    rate: float
    """Of the fitted decay: chunk k's effect on the frames it can affect falls like exp(-rate k)."""
    prompts: int
    """How many were measured; 0 for weights that were not."""

    def __post_init__(self) -> None:
        columns = (self.sensitivity, self.low, self.high, self.per_affected)
        if any(len(c) != len(self.chunk_frames) for c in columns) or not self.chunk_frames:
            raise SettingError(
                f"Frame weights for {len(self.chunk_frames)} chunks came with {[len(c) for c in columns]}."
            )
        values = [v for c in columns for v in c] + [self.rate]
        if not all(math.isfinite(v) for v in values) or min((*self.sensitivity, *self.per_affected)) < 0:
            raise SettingError("Frame weights must be finite and not negative; measure them again.")

    @property
    def values(self) -> tuple[float, ...]:
        """Weight of each chunk: sensitivity over mean sensitivity."""
        return tuple(s * len(self.sensitivity) for s in self.sensitivity)

    @property
    def fitted(self) -> tuple[float, ...]:
        """The fitted decay of `per_affected`."""
        level = _level(np.array(self.per_affected), self.rate)
        return tuple(level * math.exp(-self.rate * k) for k in range(len(self.per_affected)))

    @classmethod
    def uniform(cls, chunk_frames: Sequence[int]) -> FrameWeights:
        """All chunks alike."""
        n = len(chunk_frames)
        share = (1 / n,) * n
        return cls(tuple(chunk_frames), share, share, share, (1.0,) * n, 0.0, 0)

    @classmethod
    def from_errors(cls, errors: Tensor, chunk_frames: Sequence[int], seed: int = 0) -> FrameWeights:
        """Weights from `calibrate.rollout.roll_out`'s errors, [prompts, chunks, chunks].

        Raises SettingError, naming prompt and chunk, where one is NaN or infinite.
        """
        check_errors(errors)
        if not errors.sum() > 0:
            return cls.uniform(chunk_frames)  # quantizing changes nothing, so nothing matters more
        frames = torch.tensor(chunk_frames, dtype=torch.float64)
        means = (errors.double() * frames).sum(2) / frames.sum()  # [prompts, chunks]
        sensitivity = _normalised(means.mean(0))
        low, high = interval(means, seed)
        left = frames.flip(0).cumsum(0).flip(0)  # frames from each chunk on
        affected = means.mean(0) * frames.sum() / left
        per_affected = (affected / affected[0].clamp_min(1e-300)).tolist()
        spread = (high - low) / sensitivity.clamp_min(1e-300)
        rate = fit_rate(np.array(per_affected), spread.numpy())
        return cls(
            tuple(chunk_frames),
            tuple(sensitivity.tolist()),
            tuple(low.tolist()),
            tuple(high.tolist()),
            tuple(per_affected),
            rate,
            len(errors),
        )

    def extend(self, chunk_frames: Sequence[int]) -> FrameWeights:
        """Weights for a stream of other chunks: measured effects as far as they go, then the fitted decay.

        A chunk counts its effect per affected frame times the frames that follow; so a longer stream raises all.
        """
        frames = np.array(chunk_frames, dtype=np.float64)
        level = _level(np.array(self.per_affected), self.rate)
        beyond = [level * math.exp(-self.rate * k) for k in range(len(self.per_affected), len(frames))]
        effect = np.array([*self.per_affected[: len(frames)], *beyond])
        share = effect * frames[::-1].cumsum()[::-1]
        if not share.sum() > 0:
            return self.uniform(chunk_frames)
        share = tuple(float(s) for s in share / share.sum())
        per_affected = tuple(float(e) for e in effect)
        return FrameWeights(tuple(chunk_frames), share, share, share, per_affected, self.rate, self.prompts)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FrameWeights:
        """Read what `to_json` wrote. Raises SettingError for anything else."""
        try:
            values = json.loads(text)
            lists = {
                key: tuple(values.pop(key)) for key in ("chunk_frames", "sensitivity", "low", "high", "per_affected")
            }
            return cls(**lists, **values)
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingError(f"These are not frame weights: {error}.") from error


def check_errors(errors: Tensor) -> None:
    """Raise SettingError, naming prompt and chunk, where an error is NaN or infinite."""
    bad = (~torch.isfinite(errors)).nonzero()
    if len(bad):
        prompt, chunk, _ = bad[0].tolist()
        raise SettingError(
            f"The error of prompt {prompt + 1} with chunk {chunk + 1} quantized is not finite: the model overflows "
            "there. Try it in full precision, or leave this prompt out."
        )


def interval(means: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """95 % bootstrap interval, over prompts, of the normalised mean of `means` [prompts, chunks]: two of [chunks]."""
    # In an order of their own, so that the order in which prompts came does not matter.
    means = means[np.lexsort(means.numpy().T).tolist()]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(means), (RESAMPLES, len(means)), generator=generator)
    resampled = _normalised(means[drawn].mean(1))
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype), dim=0)
    return low, high


def converged(errors: Tensor, chunk_frames: Sequence[int], within: float = WITHIN) -> bool:
    """Whether every chunk's interval lies within `within` of its value; `errors` as in `FrameWeights.from_errors`."""
    if len(errors) < LEAST_PROMPTS:
        return False
    found = FrameWeights.from_errors(errors, chunk_frames)
    halves = zip(found.low, found.high, found.sensitivity, strict=True)
    return all((high - low) / 2 <= within * value for low, high, value in halves)


def fit_rate(effect: np.ndarray, spread: np.ndarray) -> float:
    """Decay rate of `effect` [chunks] per chunk: least squares on its logarithm, weighted by 1 / relative spread^2."""
    good = effect > 0
    if good.sum() < 2:
        return 0.0
    x, y = np.arange(len(effect))[good], np.log(effect[good])
    weight = 1 / np.maximum(spread[good], 0.02)  # np.polyfit squares it
    return max(0.0, -float(np.polyfit(x, y, 1, w=weight)[0]))


def _level(effect: np.ndarray, rate: float) -> float:
    """The fitted curve's value at chunk 0: the geometric mean of the effects, moved there."""
    good = effect > 0
    if not good.any():
        return 0.0
    return math.exp(float((np.log(effect[good]) + rate * np.arange(len(effect))[good]).mean()))


def _normalised(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True).clamp_min(1e-300)

"""Frame weights: how much each chunk matters to the final video (Q-ARVD, section 3.2), intervals, fitted decays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from .decay import Decay, fit_decay
from .horizon import complete, full_horizon

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
    own: tuple[float, ...]
    """Mean squared error in the chunk's own frames; in units of the first's."""
    later: tuple[float, ...]
    """Mean squared error in the frames after it, in the same units; there are none after the last chunk."""
    prompts: int
    """How many were measured; 0 for weights that were not."""

    def __post_init__(self) -> None:
        columns = (self.sensitivity, self.low, self.high, self.own, (*self.later, 0.0))
        if any(len(c) != len(self.chunk_frames) for c in columns) or not self.chunk_frames:
            raise SettingError(
                f"Frame weights for {len(self.chunk_frames)} chunks have columns of {[len(c) for c in columns]} "
                "values; measure them again."
            )
        values = [v for c in columns for v in c]
        if not all(math.isfinite(v) for v in values) or min(values) < 0:
            raise SettingError("Frame weights must be finite and not negative; measure them again.")

    @property
    def values(self) -> tuple[float, ...]:
        """Weight of each chunk: sensitivity over mean sensitivity."""
        return tuple(s * len(self.sensitivity) for s in self.sensitivity)

    @property
    def spread(self) -> float:
        """How far the widest interval reaches from its value, as a share of it."""
        ends = zip(self.low, self.high, self.sensitivity, strict=True)
        return max(max(high - value, value - low) / max(value, 1e-300) for low, high, value in ends)

    @property
    def per_affected(self) -> tuple[float, ...]:
        """Mean squared error over the frames from each chunk on, which are all it can affect; in units of the first."""
        return _per_affected(self.chunk_frames, self.own, self.later)

    @cached_property
    def decays(self) -> tuple[Decay, Decay]:
        """Fitted to `own` and to `later`."""
        own, later = fit_decay(self.own), fit_decay(self.later)
        return own, later if self.later else own

    @property
    def rate(self) -> float:
        """How fast the effect on later frames decays, per chunk: `later` falls like exp(-rate k), to a floor."""
        return self.decays[1].rate

    @property
    def fitted(self) -> tuple[float, ...]:
        """`per_affected` as the fitted decays have it."""
        own, later = ([decay.at(k) for k in range(len(self.own))] for decay in self.decays)
        return _per_affected(self.chunk_frames, own, later[:-1])

    @classmethod
    def uniform(cls, chunk_frames: Sequence[int]) -> FrameWeights:
        """All chunks alike."""
        n = len(chunk_frames)
        share = (1 / n,) * n
        return cls(tuple(chunk_frames), share, share, share, (1.0,) * n, (0.0,) * (n - 1), 0)

    @classmethod
    def from_errors(
        cls, errors: Tensor, chunk_frames: Sequence[int], horizon: Sequence[int] | None = None, seed: int = 0
    ) -> FrameWeights:
        """Weights from `calibrate.rollout.roll_out`'s errors, [prompts, chunks, chunks], as far as `horizon`.

        Raises SettingError, naming prompt and chunk, where one is NaN or infinite.
        """
        check_errors(errors)
        if not errors.sum() > 0:
            return cls.uniform(chunk_frames)  # quantizing changes nothing, so nothing matters more
        frames = torch.tensor(chunk_frames, dtype=torch.float64)
        horizon = horizon or full_horizon(len(frames))

        def shares(mean: Tensor) -> Tensor:
            """Of the error of all frames, from mean errors [..., chunks, chunks]: [..., chunks]."""
            effect = (complete(mean, horizon) * frames).sum(-1)
            return effect / effect.sum(-1, keepdim=True).clamp_min(1e-300)

        errors = errors.double()
        low, high = interval(errors, shares, seed)
        sensitivity, mean = shares(errors.mean(0)), complete(errors.mean(0), horizon)
        own = mean.diagonal()
        unit = own[0].clamp_min(1e-300)
        after = (mean.triu(1) * frames).sum(1)[:-1] / frames.flip(0).cumsum(0).flip(0)[1:]
        return cls(
            tuple(chunk_frames),
            tuple(sensitivity.tolist()),
            tuple(low.tolist()),
            tuple(high.tolist()),
            tuple((own / unit).tolist()),
            tuple((after / unit).tolist()),
            len(errors),
        )

    def extend(self, chunk_frames: Sequence[int]) -> FrameWeights:
        """Weights for a stream of other chunks: measured effects as far as they go, then the fitted decays.

        A chunk's effect on a later frame is taken to stay as it is for as long as the stream goes on, so in a longer
        stream early chunks weigh more.
        """
        count = len(chunk_frames)
        own, later = (
            [*values[:count], *(decay.at(k) for k in range(len(values), count))]
            for values, decay in zip((self.own, self.later), self.decays, strict=True)
        )
        share = np.array(_effect(chunk_frames, own, later[: count - 1]))
        if not share.sum() > 0:
            return self.uniform(chunk_frames)
        share = tuple(float(s) for s in share / share.sum())
        return FrameWeights(
            tuple(chunk_frames), share, share, share, tuple(own), tuple(later[: count - 1]), self.prompts
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FrameWeights:
        """Read what `to_json` wrote. Raises SettingError for anything else."""
        try:
            values = json.loads(text)
            lists = {
                key: tuple(values.pop(key)) for key in ("chunk_frames", "sensitivity", "low", "high", "own", "later")
            }
            return cls(**lists, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
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


def interval(errors: Tensor, shares: Callable[[Tensor], Tensor], seed: int = 0) -> tuple[Tensor, Tensor]:
    """95 % bootstrap interval, over prompts, of the `shares` of mean `errors` [prompts, ...]: two of [chunks]."""
    flat = errors.flatten(1)
    # In an order of their own, so that the order in which prompts came does not matter.
    flat = flat[np.lexsort(flat.numpy().T).tolist()]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(flat), (RESAMPLES, len(flat)), generator=generator)
    times = torch.zeros(RESAMPLES, len(flat), dtype=flat.dtype)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=flat.dtype))
    resampled = shares((times @ flat / len(flat)).unflatten(1, errors.shape[1:]))
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype), dim=0)
    return low, high


def converged(
    errors: Tensor, chunk_frames: Sequence[int], horizon: Sequence[int] | None = None, within: float = WITHIN
) -> bool:
    """Whether no interval reaches further than `within` of its value; `errors` as in `FrameWeights.from_errors`."""
    return len(errors) >= LEAST_PROMPTS and FrameWeights.from_errors(errors, chunk_frames, horizon).spread <= within


def _effect(chunk_frames: Sequence[int], own: Sequence[float], later: Sequence[float]) -> list[float]:
    """Squared error summed over all frames, for each chunk."""
    after = np.cumsum(list(chunk_frames)[::-1])[::-1] - chunk_frames  # frames after each chunk
    return [float(a * n + b * m) for a, b, n, m in zip(own, (*later, 0.0), chunk_frames, after, strict=True)]


def _per_affected(chunk_frames: Sequence[int], own: Sequence[float], later: Sequence[float]) -> tuple[float, ...]:
    affected = np.cumsum(list(chunk_frames)[::-1])[::-1]
    effect = np.array(_effect(chunk_frames, own, later)) / affected
    return tuple(float(e) for e in effect / max(effect[0], 1e-300))

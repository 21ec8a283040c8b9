"""How much each chunk matters to the final video, as charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .charts import line_chart
from .numerals import number_text
from .page import Figure

LEAST = 4
"""Chunks from which on a floor and an exponential, three numbers, are a fit."""


@dataclass(frozen=True)
class Sensitivity:
    """How much each chunk matters, as measured on `prompts` prompts; see `calibrate.frame_weights.FrameWeights`."""

    chunk_frames: Sequence[int]
    share: Sequence[float]
    """Of the final error, when this chunk alone is quantized; sums to 1."""
    low: Sequence[float]
    high: Sequence[float]
    per_affected: Sequence[float]
    """Effect on a frame that the chunk can affect, in units of the first chunk's."""
    fitted: Sequence[float]
    """`per_affected` as the fitted decays have it, each an exponential on a floor."""
    rate: float
    """At which the effect on later frames decays, per chunk."""
    prompts: int
    horizon: Sequence[int] = ()
    """How many chunks each one's effect was followed for, itself included; nothing where that is not known."""
    bits: int | None = None
    """Of the weights that chunks were measured with, where that is known."""

    @property
    def filled_in(self) -> bool:
        """Whether a part of the effects was not measured but estimated from the rest."""
        return any(k + far < len(self.horizon) for k, far in enumerate(self.horizon))

    @property
    def fitted_share(self) -> list[float]:
        """What the fitted decay makes of `share`: each chunk affects itself and all frames after it."""
        effects = [effect * sum(self.chunk_frames[k:]) for k, effect in enumerate(self.fitted)]
        total = sum(effects)
        return [effect / total if total else 0.0 for effect in effects]


def sensitivity_figures(name: str, found: Sensitivity) -> list[Figure]:
    """The share of each chunk in the final error, and its effect on a frame it can affect."""
    ends = {"measured": list(zip(found.low, found.high, strict=True))}
    prompts = f"{found.prompts} {'prompt' if found.prompts == 1 else 'prompts'}"
    if found.bits is not None:
        prompts += f", measured with {found.bits}-bit weights"
    fit = f"In the fit, effects on later frames decay to a floor, at a rate of {number_text(found.rate)} a chunk."
    if len(found.share) < LEAST:
        fit = f"A fit to so few chunks says nothing; it needs {LEAST} or more."
    share = {"measured": found.share, "from the fitted decay": found.fitted_share}
    decay = {"measured": found.per_affected, "fitted decay": found.fitted}
    return [
        Figure(
            f"Sensitivity of each chunk, {name}",
            f"Share of the squared error in all final latents with its 95 % interval over {prompts}.{_followed(found)}",
            line_chart(share, "chunk", "share of the final error", False, 1, ends, ["from the fitted decay"]),
        ),
        Figure(
            f"Effect on each affected frame, {name}",
            f"Error per frame from the chunk on, relative to the first chunk. The dashed line is a fit. {fit}",
            line_chart(decay, "chunk", "effect per affected frame", True, 1, dashed=["fitted decay"]),
        ),
    ]


def _followed(found: Sensitivity) -> str:
    """What was measured and what was not."""
    if not found.filled_in:
        return ""
    horizon = ", ".join(map(str, found.horizon))
    return f" Effects were followed for {horizon} chunks, including the chunk itself; the rest is estimated from them."

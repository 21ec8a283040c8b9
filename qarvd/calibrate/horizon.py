"""How far each chunk's effect is followed: to the end of the clip, or only as far as tells the rest.

Errors settle at once: quantizing chunk k leaves about the same error in every later chunk, and that error is about the
same share of the error in chunk k itself, whichever k (but the first two). So it is enough to generate three chunks
with the first one quantized, two with the second and third, and each other one by itself; on the demo model and its
twin every weight comes out within 7 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..errors import SettingError

SHORT = (3, 2, 2)
"""Chunks that are generated with each of the first ones quantized, itself included; 1 with any other."""


def full_horizon(chunks: int) -> tuple[int, ...]:
    """The published measure: every chunk's effect is followed to the end."""
    return tuple(range(chunks, 0, -1))


def short_horizon(chunks: int) -> tuple[int, ...]:
    """The cheaper measure: 11 chunks for a clip of 7, where the published one takes 28; 25 for one of 21, not 231."""
    return tuple(min((*SHORT, *(1 for _ in range(chunks)))[k], chunks - k) for k in range(chunks))


HORIZONS: dict[str, Callable[[int], tuple[int, ...]]] = {"full": full_horizon, "short": short_horizon}
"""By name: how far for each of so many chunks."""


def complete(errors: Tensor, horizon: Sequence[int]) -> Tensor:
    """Mean errors [..., chunks, chunks] over prompts, what lies beyond `horizon` filled in from what was measured.

    A row that was followed goes on with the mean of its later chunks; another takes its own error times the share of
    the last row that was. Raises SettingError where none was followed.
    """
    chunks = errors.shape[-1]
    if tuple(horizon) == full_horizon(chunks):
        return errors
    found, share = errors.clone(), None
    for k, far in enumerate(horizon):
        own = errors[..., k, k]
        if far > 1:
            later = errors[..., k, k + 1 : k + far].mean(-1)
            share = later / own.clamp_min(1e-300)
            found[..., k, k + far :] = later[..., None]
        elif k + far < chunks:
            if share is None:
                raise SettingError(
                    "No chunk's effect was followed beyond itself, so the rest cannot be estimated. Calibrate with a "
                    "longer reach."
                )
            found[..., k, k + far :] = (own * share)[..., None]
    return found

"""Noise schedule of distilled autoregressive models: shifted flow-matching sigmas and a short step list."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import SettingError

STEPS = 1000


@cache
def sigma_table(shift: float) -> Tensor:
    """The training table of sigmas, [1000], float32, descending from 1 (Self-Forcing, `FlowMatchScheduler`)."""
    s = torch.linspace(1.0, 0.0, STEPS + 1)[:-1]
    return shift * s / (1 + (shift - 1) * s)


@dataclass(frozen=True)
class Schedule:
    """Timesteps (0..1000, warped ones are fractions) at which each chunk is denoised, highest noise first."""

    timesteps: tuple[float, ...]
    shift: float = 5.0
    first_timesteps: tuple[float, ...] | None = None
    """Timesteps of the first chunk where they differ."""
    context_noise: float = 0.0
    """Timestep of the pass that writes a finished chunk into the cache."""

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise SettingError(f"The timestep shift is {self.shift}; it must be above 0.")
        for steps in (self.timesteps, self.first_timesteps):
            if steps is not None:
                _check_falling(steps)
        if not 0 <= self.context_noise <= STEPS:
            raise SettingError(f"The context noise is {self.context_noise}; it is a timestep from 0 to 1000.")

    @classmethod
    def from_steps(
        cls,
        steps: Sequence[int],
        shift: float = 5.0,
        warp: bool = True,
        first_steps: Sequence[int] | None = None,
        context_noise: float = 0.0,
    ) -> Schedule:
        """Build from nominal steps such as 1000, 750, 500, 250; `warp` maps them through the shifted table."""
        for step in (*steps, *(first_steps or ())):
            if not 0 < step <= STEPS or int(step) != step:
                raise SettingError(f"The denoising step {step} is not a whole number from 1 to 1000.")
        for nominal in (steps, first_steps or steps):
            _check_falling(nominal)

        def place(nominal: Sequence[int]) -> tuple[float, ...]:
            if not warp:
                return tuple(float(step) for step in nominal)
            table = sigma_table(shift) * STEPS
            return tuple(min(float(table[STEPS - int(step)]), float(STEPS)) for step in nominal)  # rounding may pass 1

        return cls(place(steps), shift, place(first_steps) if first_steps else None, context_noise)

    def of_chunk(self, index: int) -> tuple[float, ...]:
        """Timesteps of the chunk `index`, counted from the start of the stream."""
        return self.first_timesteps if index == 0 and self.first_timesteps else self.timesteps

    def sigma(self, timestep: float) -> float:
        """Sigma of the nearest entry of the table; as published, timestep 0 finds the last one, not 0."""
        table = sigma_table(self.shift)
        return float(table[((table * STEPS).double() - timestep).abs().argmin()])

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """`clean` latents as noisy as they are at `timestep`, computed in float32, in their own dtype."""
        sigma = self.sigma(timestep)
        return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)


def _check_falling(steps: Sequence[float]) -> None:
    falling = all(a > b for a, b in itertools.pairwise(steps))
    if not steps or not falling or not steps[-1] > 0 or not steps[0] <= STEPS:
        raise SettingError(f"The denoising steps {list(steps)} must fall from at most 1000 to above 0.")

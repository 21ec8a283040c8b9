"""The node that says at which timesteps chunks are denoised."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..qarvd.errors import SettingError
from ..qarvd.stream.presets import PRESETS
from ..qarvd.stream.schedule import STEPS, Schedule
from .models import CATEGORY
from .sockets import ScheduleSocket

AS_FAMILY = "as the family"
TOLERANCE = 1e-4
"""Sigmas closer than this are the same."""


class ARSchedule(io.ComfyNode):
    """A family's schedule, or one of the user's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdSchedule",
            display_name="AR Schedule",
            category=CATEGORY,
            description=(
                "The few timesteps at which a distilled model denoises each chunk. What you leave alone is as "
                "published for the family."
            ),
            inputs=[
                io.Combo.Input(
                    "family",
                    options=list(PRESETS),
                    default="self-forcing",
                    tooltip="The family whose schedule to start from.",
                ),
                io.String.Input(
                    "steps",
                    default="",
                    tooltip=(
                        "Nominal timesteps from high to low, such as 1000, 750, 500, 250. Empty: as the family has "
                        "them."
                    ),
                ),
                io.String.Input(
                    "first_steps",
                    default="",
                    tooltip=(
                        "Timesteps of the first chunk, if they differ (usually there are more). Empty: as the family "
                        "has them."
                    ),
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="The timestep shift. 0: as the family has it.",
                ),
                io.Combo.Input(
                    "warp",
                    options=[AS_FAMILY, "yes", "no"],
                    default=AS_FAMILY,
                    tooltip="yes maps the steps through the shifted table; no uses them as they are.",
                ),
                io.Float.Input(
                    "context_noise",
                    default=-1.0,
                    min=-1.0,
                    max=1000.0,
                    step=1.0,
                    tooltip=(
                        "The timestep of the pass that writes a finished chunk into the cache. -1: as the family has "
                        "it."
                    ),
                ),
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas", tooltip="Connect to SamplerCustomAdvanced. The last one is 0."),
                ScheduleSocket.Output(
                    display_name="schedule",
                    tooltip="The complete schedule, for Streaming AR Sampler or Stream AR Video.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, family: str, steps: str, first_steps: str, shift: float, warp: str, context_noise: float
    ) -> io.NodeOutput:
        preset = PRESETS[family]
        schedule = Schedule.from_steps(
            numbers(steps) or preset.steps,
            shift or preset.shift,
            preset.warp if warp == AS_FAMILY else warp == "yes",
            numbers(first_steps) or (None if steps.strip() else preset.first_steps),
            preset.context_noise if context_noise < 0 else context_noise,
        )
        return io.NodeOutput(sigmas_of(schedule), schedule)


def numbers(text: str) -> tuple[int, ...]:
    """'1000, 750' -> (1000, 750). Raises SettingError for anything but whole numbers."""
    parts = text.replace(",", " ").split()
    if not all(part.isdecimal() for part in parts):
        raise SettingError(f"The steps are {text!r}. Write whole numbers with commas, such as 1000, 750, 500, 250.")
    return tuple(map(int, parts))


def sigmas_of(schedule: Schedule) -> Tensor:
    """Sigma of each step, and 0 at the end, float32 [steps + 1]."""
    return torch.tensor([*(timestep / STEPS for timestep in schedule.timesteps), 0.0])


def agreed(sigmas: Tensor, schedule: Schedule | None, default: Schedule) -> Schedule:
    """The schedule that SIGMAS and, where it is wired, a schedule stand for. Raises SettingError where they disagree.

    SIGMAS alone give the steps; shift and context noise are those of the `default`.
    """
    values = sigmas.detach().float().cpu()
    if len(values) < 2 or values[-1] != 0:
        raise SettingError(f"The sigmas {_written(values)} do not end in 0. Take them from AR Schedule.")
    if schedule is None:
        same = _same(values, sigmas_of(default))
        times = tuple(float(v) * STEPS for v in values[:-1])
        return default if same else Schedule(times, default.shift, None, default.context_noise)
    if not _same(values, sigmas_of(schedule)):
        raise SettingError(
            f"The sigmas {_written(values)} differ from those of the schedule, {_written(sigmas_of(schedule))}. Take "
            "both from the same AR Schedule, or disconnect schedule."
        )
    return schedule


def _written(sigmas: Tensor) -> list[float]:
    return [round(v, 4) for v in sigmas.tolist()]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() < TOLERANCE).all())

"""Roll a model out on prompts and measure how much each chunk matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..calibrate import call_sensitivity
from ..calibrate.calibration import Batch, Calibration, batch_prompts, collect
from ..calibrate.collect import refusing_overflow
from ..calibrate.horizon import HORIZONS
from ..calibrate.rollout import Setting
from ..checkpoint.model import Model
from ..errors import CheckpointError, SettingError
from ..log import warn_once
from ..ops.backends.weight_only import WEIGHT_ONLY
from ..ops.linear import QuantizedLinear
from ..quantize.model import quantize_tree
from ..recipe import Recipe
from .time_budget import NO_REST, Clock, PromptBudget, RemainingWork
from .work import Work

MEASURED, MEASURED_IN_TIME = 32, 8
"""Prompts on which chunks are measured at most, without and with a time to keep."""
SEED = 20_000
"""Of the first prompt's noise, so that calibration does not see the noise of seeds people use."""


def identity(model: Model) -> str:
    """What tells a full-precision model from others. Raises CheckpointError for a quantized one."""
    if model.quantized:
        raise CheckpointError("The model is already quantized; start from the full-precision checkpoint.")
    return model.identity


def setting_of(model: Model, size: tuple[int, int], frames: int) -> Setting:
    """What is generated when `model` is calibrated on clips of `frames` latent frames of `size` (height, width)."""
    return Setting(model.config, model.preset, size, frames)


@dataclass(frozen=True)
class CalibrationPlan:
    """What is generated when a model is calibrated, and what is measured on it."""

    size: tuple[int, int]
    """Height and width of the latents."""
    frames: int
    """Latent frames of a clip."""
    recipe: Recipe
    """At whose bits effects are measured, rounded to nearest, and only those that it wants."""
    seed: int = SEED
    """Of the first clip's noise."""
    most_measured: int | None = None
    """Prompts on which chunks are measured at most; None: MEASURED, or MEASURED_IN_TIME if `minutes` are given."""
    horizon: str = "full"
    """How far each chunk's effect is followed, by its name in HORIZONS."""
    minutes: float | None = None
    """What the whole job may take, `rest` included; None: as long as all prompts take."""
    rest: RemainingWork = NO_REST
    """What the job does after calibration."""

    @property
    def prompts_to_measure(self) -> int:
        """Prompts on which chunks are measured at most."""
        return self.most_measured or (MEASURED if self.minutes is None else MEASURED_IN_TIME)


def calibrate(
    model: Model,
    embeddings: Tensor,
    plan: CalibrationPlan,
    work: Work | None = None,
    on_chunk: Callable[[int, int], object] = lambda done, total: None,
) -> Calibration:
    """Calibrate `model`, on the device and in the dtype it is in, with one clip for each of `embeddings`.

    As many prompts are taken as fit the plan's minutes at the speed of those before, but at least LEAST_PROMPTS. Warns
    if effects are measured of weights alone. `on_chunk(done, total)` counts chunks. Raises SettingError for an unknown
    horizon, and CheckpointError for a model that is quantized, or whose latents become NaN or infinite.
    """
    setting = setting_of(model, plan.size, plan.frames)
    empty = nothing_calibrated(model, setting, plan)
    chunks_matter = plan.recipe.frame_weights and len(setting.spans) > 1
    quantized = quantized_copy(model, plan.recipe) if chunks_matter or plan.recipe.call_weights else None
    texts = embeddings.to("cpu", model.tree.patch_embedding.weight.dtype)  # a batch at a time goes to the device
    later = chunks_of_calls(setting, call_batches(setting, texts, plan.recipe))
    clock = Clock(work)
    budget = PromptBudget(clock, plan.minutes, plan.rest, len(setting.spans), batch_prompts(setting), later)

    def progress(done: int, total: int) -> None:
        clock.generated = done
        on_chunk(done, total + later)

    def keep(first: int, batch: Batch) -> None:
        if work is not None:
            work.keep_batch(first, batch, empty)
            clock.store()

    rollouts, errors = collect(
        setting,
        model.tree,
        quantized if chunks_matter else None,
        texts,
        plan.seed,
        plan.prompts_to_measure,
        empty.horizon,
        recall=(lambda first: None) if work is None else work.recall_batch,
        keep=keep,
        enough=budget.enough,
        on_chunk=progress,
    )
    found = replace(empty, rollouts=tuple(rollouts), errors=errors)
    batches = call_batches(setting, texts[: found.prompts], plan.recipe)
    if not batches:
        return found
    measured = None if work is None else work.note("calls")
    if measured is None:
        numbers, end = count(clock.generated + 1), clock.generated + chunks_of_calls(setting, batches)
        count_chunk = lambda: on_chunk(next(numbers), end)  # noqa: E731
        measured = measure_calls(setting, model.tree, quantized, batches, plan.seed, count_chunk).tolist()
        if work is not None:
            work.note("calls", measured)
    return replace(found, call_errors=torch.tensor(measured, dtype=torch.float64))


def nothing_calibrated(model: Model, setting: Setting, plan: CalibrationPlan) -> Calibration:
    """The calibration of no prompts. Raises SettingError for an unknown horizon, CheckpointError if quantized."""
    if plan.horizon not in HORIZONS:
        raise SettingError(f"There is no reach {plan.horizon!r}; choose from {', '.join(HORIZONS)}.")
    chunks = len(setting.spans)
    return Calibration(
        model=identity(model),
        preset_name=model.preset_name,
        size=plan.size,
        frames=plan.frames,
        rollouts=(),
        errors=torch.zeros(0, chunks, chunks, dtype=torch.float64),
        horizon=HORIZONS[plan.horizon](chunks),
        call_errors=call_sensitivity.nothing_measured(setting),
        measured_as=plan.recipe.without_data(),
    )


def quantized_copy(model: Model, recipe: Recipe) -> Any:
    """A copy of the model's tree, rounded to nearest. Warns if only its weights can be quantized here."""
    tree = copy.deepcopy(model.tree)
    quantize_tree(tree, model.config.num_layers, recipe.without_data())
    if any(isinstance(m, QuantizedLinear) and m.backend is WEIGHT_ONLY for m in tree.modules()):
        warn_once("Activations cannot be quantized here: effects are measured of quantized weights alone.")
    return tree


def call_batches(setting: Setting, texts: Tensor, recipe: Recipe) -> tuple[Tensor, ...]:
    """Those of `texts` on which single model calls are measured, in batches; none if the recipe does not want it."""
    at_once = batch_prompts(setting)
    most = min(call_sensitivity.PROMPTS, call_sensitivity.BATCHES * at_once, len(texts))
    return texts[:most].split(at_once) if recipe.call_weights and most else ()


def chunks_of_calls(setting: Setting, batches: Sequence[Tensor]) -> int:
    """How many chunks are generated to measure the calls of `batches`."""
    return call_sensitivity.generated(setting) * len(batches)


def measure_calls(
    setting: Setting,
    full: Any,
    quantized: Any,
    batches: Sequence[Tensor],
    seed: int,
    on_chunk: Callable[[], object],
) -> Tensor:
    """What quantizing one model call at a time does to the prompts of `batches`, float64 [prompts, chunks, calls].

    Raises CheckpointError, naming the layer, where that is not finite.
    """
    parts = []
    for batch in batches:
        texts = batch.to(full.patch_embedding.weight)
        seeds = range(seed, seed + len(texts))
        errors = call_sensitivity.call_errors(setting, full, quantized, texts, seeds, on_chunk)
        if not torch.isfinite(errors).all():
            with refusing_overflow(full, quantized):  # once more, since looking at every layer takes time
                call_sensitivity.call_errors(setting, full, quantized, texts, seeds)
            raise CheckpointError(
                "Latents became NaN or infinite with single model calls quantized: the model overflows there. Stream "
                "it in full precision with the same prompts first."
            )
        parts.append(errors)
        seed += len(texts)
    return torch.cat(parts)

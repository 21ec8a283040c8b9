"""Roll a model out on prompts and measure how much each chunk matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..calibrate import call_sensitivity
from ..calibrate.calibration import Batch, Calibration, batch_prompts, collect
from ..calibrate.collect import refusing_overflow
from ..calibrate.frame_weights import LEAST_PROMPTS
from ..calibrate.horizon import HORIZONS
from ..calibrate.rollout import Setting
from ..checkpoint.model import Model
from ..errors import CheckpointError, SettingError
from ..ops.backends.weight_only import WEIGHT_ONLY
from ..ops.linear import QuantizedLinear
from ..quantize.model import quantize_tree
from ..recipe import Recipe
from .time_budget import NO_REST, Clock, RemainingWork
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


def calibrate(
    model: Model,
    embeddings: Tensor,
    size: tuple[int, int],
    frames: int,
    recipe: Recipe,
    seed: int = SEED,
    most_measured: int | None = None,
    horizon: str = "full",
    work: Work | None = None,
    minutes: float | None = None,
    rest: RemainingWork = NO_REST,
    on_chunk: Callable[[int, int], object] = lambda done, total: None,
    on_caveat: Callable[[str], object] = lambda text: None,
) -> Calibration:
    """Calibrate `model`, on the device and in the dtype it is in, with one clip for each of `embeddings`.

    Chunks are measured (at the recipe's bits, rounded to nearest) on at most `most_measured` prompts (MEASURED; or
    MEASURED_IN_TIME, where time is short), and only where the recipe wants frame weights; `horizon` names how far each
    effect is followed. Of the prompts as many are taken as fit `minutes` with all that follows, `rest` included, at the
    pace of those before, but at least LEAST_PROMPTS. `on_caveat` hears where effects are measured of weights alone.
    """
    setting = setting_of(model, size, frames)
    chunks = len(setting.spans)
    if horizon not in HORIZONS:
        raise SettingError(f"There is no reach {horizon!r}; choose from {', '.join(HORIZONS)}.")
    errors, far = torch.zeros(0, chunks, chunks, dtype=torch.float64), HORIZONS[horizon](chunks)
    no_calls = call_sensitivity.nothing_measured(setting)
    rounded = recipe.without_data()
    nothing = Calibration(identity(model), model.preset_name, size, frames, (), errors, far, no_calls, rounded)
    quantized: Any = None
    chunks_matter, calls_matter = recipe.frame_weights and chunks > 1, recipe.call_weights
    if chunks_matter or calls_matter:
        quantized = copy.deepcopy(model.tree)
        quantize_tree(quantized, model.config.num_layers, rounded)
        if any(isinstance(m, QuantizedLinear) and m.backend is WEIGHT_ONLY for m in quantized.modules()):
            on_caveat("Activations cannot be quantized here: effects are measured of quantized weights alone.")
    texts = embeddings.to("cpu", model.tree.patch_embedding.weight.dtype)  # a batch at a time goes to the device
    at_once = batch_prompts(setting)

    def followed(prompts: int) -> tuple[Tensor, ...]:
        """Batches of the first `prompts` on which calls are measured."""
        most = min(call_sensitivity.PROMPTS, call_sensitivity.BATCHES * at_once, prompts)
        return texts[:most].split(at_once) if calls_matter and most else ()

    later = call_sensitivity.generated(setting) * len(followed(len(texts)))
    clock = Clock(work)
    stop = None if work is None else work.note("prompts")

    def enough(prompts: int, upcoming: int) -> bool:
        nonlocal stop
        finished = work is not None and work.has_batch(prompts)
        late = (
            minutes is not None
            and clock.projected_minutes(upcoming + later, prompts // at_once + 1, chunks, rest) > minutes
        )
        if stop is None and late and not finished:
            stop = max(prompts, LEAST_PROMPTS)
            if work is not None:
                work.note("prompts", stop)
        return stop is not None and prompts >= stop

    def progress(now: int, most: int) -> None:
        clock.generated = now
        on_chunk(now, most + later)

    def keep(first: int, batch: Batch) -> None:
        if work is not None:
            work.keep_batch(first, batch, nothing)
            clock.store()

    rollouts, errors = collect(
        setting,
        model.tree,
        quantized if chunks_matter else None,
        texts,
        seed,
        most_measured or (MEASURED if minutes is None else MEASURED_IN_TIME),
        far,
        recall=(lambda first: None) if work is None else work.recall_batch,
        keep=keep,
        enough=enough,
        on_chunk=progress,
    )
    found = replace(nothing, rollouts=tuple(rollouts), errors=errors)
    few = followed(found.prompts)
    if not few:
        return found
    later = call_sensitivity.generated(setting) * len(few)
    measured, numbers = None if work is None else work.note("calls"), count(clock.generated + 1)
    if measured is None:
        end = clock.generated + later
        errors = measure_calls(setting, model.tree, quantized, few, seed, lambda: on_chunk(next(numbers), end))
        measured = errors.tolist()
        if work is not None:
            work.note("calls", measured)
    return replace(found, call_errors=torch.tensor(measured, dtype=torch.float64))


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

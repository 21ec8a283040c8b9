"""Roll a model out on prompts and measure how much each chunk matters."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..calibrate import calls
from ..calibrate.calibration import Calibration, batch_prompts, collect
from ..calibrate.reach import REACHES
from ..calibrate.rollout import Setting
from ..checkpoint.model import Model, checksum
from ..errors import CheckpointError, SettingError
from ..quantize.model import quantize_tree
from ..recipe import Recipe
from .work import Work

SEED = 20_000
"""Of the first prompt's noise, so that calibration does not see the noise of seeds people use."""


def identity(model: Model) -> str:
    """The checksum of a full-precision model, in bfloat16, so that it is the same whatever dtype it computes in.

    Raises CheckpointError for a quantized one.
    """
    if model.recipe is not None:
        raise CheckpointError("The model is already quantized; start from the full-precision checkpoint.")
    return checksum({key: tensor.cpu().bfloat16() for key, tensor in model.tree.state_dict().items()})


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
    most_measured: int = 32,
    reach: str = "full",
    work: Work | None = None,
    minutes: float | None = None,
    on_chunk: Callable[[int, int], object] = lambda done, total: None,
) -> Calibration:
    """Calibrate `model`, on the device and in the dtype it is in, with one clip for each of `embeddings`.

    Chunks are measured (at the recipe's bits, rounded to nearest) on at most `most_measured` prompts, and only where
    the recipe wants frame weights; `reach` names how far each effect is followed. Work stops early after `minutes`,
    with the prompts done by then.
    """
    setting = setting_of(model, size, frames)
    chunks = len(setting.spans)
    if reach not in REACHES:
        raise SettingError(f"There is no reach {reach!r}; choose from {', '.join(REACHES)}.")
    errors, far = torch.zeros(0, chunks, chunks, dtype=torch.float64), REACHES[reach](chunks)
    no_calls = calls.nothing_measured(setting)
    nothing = Calibration(identity(model), model.preset_name, size, frames, (), errors, far, no_calls)
    quantized: Any = None
    if recipe.frame_weights and chunks > 1:
        quantized = copy.deepcopy(model.tree)
        quantize_tree(quantized, model.config.num_layers, recipe.without_data())
    texts = embeddings.to(model.tree.patch_embedding.weight)
    at_once = batch_prompts(setting)
    few = texts[: min(calls.PROMPTS, calls.BATCHES * at_once)].split(at_once) if len(texts) else ()
    later = calls.generated(setting) * len(few) if quantized is not None and recipe.call_weights else 0
    began = time.monotonic()
    stop = None if work is None else work.note("prompts")

    def enough(prompts: int) -> bool:
        nonlocal stop
        if stop is None and minutes is not None:
            elapsed = (time.monotonic() - began) / 60
            if elapsed + elapsed / prompts > minutes:
                stop = prompts
                if work is not None:
                    work.note("prompts", stop)
        return stop is not None and prompts >= stop

    done = 0

    def progress(now: int, most: int) -> None:
        nonlocal done
        done = now
        on_chunk(now, most + later)

    rollouts, errors = collect(
        setting,
        model.tree,
        quantized,
        texts,
        seed,
        most_measured,
        far,
        recall=(lambda first: None) if work is None else work.recall_batch,
        keep=(lambda first, batch: None) if work is None else lambda first, b: work.keep_batch(first, b, nothing),
        enough=enough,
        on_chunk=progress,
    )
    found = replace(nothing, rollouts=tuple(rollouts), errors=errors)
    if not later:
        return found
    measured, numbers = None if work is None else work.note("calls"), count(done + 1)
    if measured is None:
        end = done + later
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

    Raises CheckpointError where that is not finite.
    """
    parts = []
    for texts in batches:
        seeds = range(seed, seed + len(texts))
        parts.append(calls.call_errors(setting, full, quantized, texts, seeds, on_chunk))
        seed += len(texts)
    errors = torch.cat(parts)
    if not torch.isfinite(errors).all():
        raise CheckpointError("Latents became NaN or infinite where single model calls were quantized.")
    return errors

"""Quantize a loaded model by a recipe, with or without a calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import prod

from ..calibrate.calibration import Calibration
from ..calibrate.spill import Spill
from ..calibrate.weights import FrameWeights
from ..checkpoint.model import Model
from ..errors import SettingError
from ..quantize.blockwise import Memory, quantize_blockwise
from ..quantize.model import LayerReport, quantize_tree
from ..recipe import Recipe
from .budget import choose_bits
from .calibrate import identity, setting_of
from .work import Work

IN_MEMORY = 4e9
"""Bytes of calibration states that are kept in memory; more goes to disk, where there is a work folder."""


def quantize(
    model: Model,
    recipe: Recipe,
    calibration: Calibration | None = None,
    work: Work | None = None,
    on_layer: Callable[[str], object] = lambda name: None,
    on_call: Callable[[], object] = lambda: None,
) -> tuple[Model, list[LayerReport]]:
    """Quantize the model's tree in place, where it lies, and note in the model what each layer got.

    Without a calibration the recipe must be one that needs none (`Recipe.without_data`). `on_layer` hears of every
    linear, `on_call` of every measurement for a bit budget. Raises SettingError for statistics of another model and
    for a target that cannot be met.
    """
    notes = dict(model.notes)
    if calibration is None:
        reports = quantize_tree(model.tree, model.config.num_layers, recipe, on_layer)
    else:
        if calibration.model != identity(model) or calibration.preset_name != model.preset_name:
            raise SettingError(
                f"The statistics are those of another model (or of the preset {calibration.preset_name}); "
                "calibrate this one."
            )
        setting = setting_of(model, calibration.size, calibration.frames)
        weights = FrameWeights.uniform(setting.chunk_sizes)
        if recipe.frame_weights:
            weights = calibration.weights(setting.chunk_sizes)
        choice = None
        if recipe.target is not None:
            choice = choose_bits(model, setting, calibration.rollouts, weights.values, recipe, on_call)
            found = choice.allocation
            notes["budget"] = {"bytes": found.nbytes, "error": found.error, "least_possible_error": found.bound}
        spill = Spill(work.spill() if work is not None and state_bytes(calibration, model) > IN_MEMORY else None)
        reports = quantize_blockwise(
            model.tree,
            setting,
            calibration.rollouts,
            weights.values,
            recipe,
            None if choice is None else choice.bits,
            spill=spill,
            memory=None if work is None else Memory(work.recall_group, work.keep_group),
            on_layer=on_layer,
        )
        if choice is not None:
            reports = [choice.explain(report) for report in reports]
        notes["calibration"] = {"prompts": calibration.prompts, "size": calibration.size, "frames": calibration.frames}
        notes["frame_weights"] = json.loads(weights.to_json())
    notes["layers"] = layer_notes(reports)
    return replace(model, recipe=recipe, notes=notes), reports


def state_bytes(calibration: Calibration, model: Model) -> float:
    """Bytes of the states that walk through the blocks."""
    config = model.config
    tokens = sum(rollout.tokens for rollout in calibration.rollouts) / prod(config.patch_size)
    return 3 * tokens * config.dim * model.tree.patch_embedding.weight.itemsize


def layer_notes(reports: Sequence[LayerReport]) -> dict[str, object]:
    """The reports as the file's metadata holds them."""
    return {r.name: {k: v for k, v in asdict(r).items() if k != "name" and v is not None} for r in reports}

"""Quantize a loaded model by a recipe, with or without a calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import prod

import torch
from torch import Tensor

from ..calibrate.calibration import Calibration
from ..calibrate.call_sensitivity import call_shares, calls_of, nothing_measured, sample_calls
from ..calibrate.frame_weights import FrameWeights
from ..calibrate.offload import OffloadAllocator
from ..calibrate.rollout import Rollout, Setting
from ..checkpoint.model import Model
from ..errors import SettingError
from ..quantize.blockwise import quantize_blockwise
from ..quantize.budget import Allocation
from ..quantize.model import LayerReport, quantize_tree
from ..quantize.walk import Memory
from ..recipe import Recipe
from .budget import Choice, choose_bits
from .calibrate import identity, setting_of
from .work import Work

IN_MEMORY = 1e9
"""Bytes of calibration states that are kept in memory; more goes to disk, where there is a work folder."""
ON_CARD = 8e9
"""Bytes of a card's memory that are left free where it takes the states."""
MEASURING, QUANTIZING = "measuring what each number of bits does", "quantizing"
"""What model calls are for."""
CHOICE = "bits"
"""Name of the note that holds a budget's choice."""


def quantize(
    model: Model,
    recipe: Recipe,
    calibration: Calibration | None = None,
    work: Work | None = None,
    on_layer: Callable[[str], object] = lambda name: None,
    on_call: Callable[[str], object] = lambda what: None,
    all_calls: bool = False,
) -> tuple[Model, list[LayerReport]]:
    """Quantize the model's tree in place, where it lies, and note in the model what each layer got.

    Layers are fitted to the calls that matter and to some of the others (`sample_calls`), or to `all_calls`,
    which takes twice the time. Without a calibration the recipe must be one that needs none (`Recipe.without_data`).
    `on_layer` hears of every linear, `on_call` before every model call, of what it is for; both may raise to stop.
    Raises SettingError for statistics of another model, for a target that cannot be met, and for streams shorter than
    the calibration's clips.
    """
    notes = dict(model.notes)
    if calibration is None:
        reports = quantize_tree(model.tree, model.config.num_layers, recipe, on_layer)
    else:
        calibration = fitting(calibration, model)
        setting = setting_of(model, calibration.size, calibration.frames)
        check_stream(recipe, len(setting.spans))
        sizes = setting.chunk_sizes
        weights = calibration.weights(sizes) if recipe.frame_weights else FrameWeights.uniform(sizes)
        values = weights.values if recipe.stream_chunks is None else in_stream(weights, setting, recipe.stream_chunks)
        table = call_table(setting, values, calibration.call_errors if recipe.call_weights else None)
        choice = None
        if recipe.target is not None:
            choice = choice_of(model, setting, calibration.rollouts, table, recipe, work, lambda: on_call(MEASURING))
            notes["budget"] = {"bytes": choice.allocation.nbytes, "error": choice.allocation.error}
        rollouts, fitted = (calibration.rollouts, table) if all_calls else sample_calls(calibration.rollouts, table)
        with offload_for(state_bytes(rollouts, model), model.tree.patch_embedding.weight.device, work) as offload:
            reports = quantize_blockwise(
                model.tree,
                setting,
                rollouts,
                fitted,
                recipe,
                None if choice is None else choice.bits,
                offload=offload,
                memory=None if work is None else Memory(work.recall_group, work.keep_group),
                on_layer=on_layer,
                on_call=lambda: on_call(QUANTIZING),
            )
        if choice is not None:
            reports = [choice.explain(report) for report in reports]
        notes["calibration"] = calibration_notes(calibration)
        notes["frame_weights"] = json.loads(weights.to_json())
        notes["call_weights"] = table
    notes["layers"] = layer_notes(reports)
    return replace(model, recipe=recipe, notes=notes), reports


def check_stream(recipe: Recipe, chunks: int) -> None:
    """Raise SettingError where the recipe is for shorter streams than clips of `chunks` chunks."""
    if recipe.stream_chunks is not None and recipe.stream_chunks < chunks:
        raise SettingError(
            f"The streams (--stream-chunks) have {recipe.stream_chunks} chunks, but the calibration clips have "
            f"{chunks}. Take shorter clips (--chunks), or leave --stream-chunks out."
        )


def in_stream(weights: FrameWeights, setting: Setting, chunks: int) -> tuple[float, ...]:
    """The recorded chunks' weights in a stream of `chunks`, of mean 1 again."""
    recorded = len(weights.chunk_frames)
    sizes = (*weights.chunk_frames, *[setting.preset.chunk_frames] * (chunks - recorded))
    found = weights.extend(sizes).values[:recorded]
    return tuple(value * recorded / sum(found) for value in found)


def call_table(setting: Setting, weights: Sequence[float], errors: Tensor | None) -> list[list[float]]:
    """Weight of every model call, [chunks][calls]: its chunk's weight times its share in it."""
    shares = call_shares(nothing_measured(setting) if errors is None else errors, calls_of(setting))
    return [[weight * share for share in row] for weight, row in zip(weights, shares, strict=True)]


def fitting(calibration: Calibration, model: Model) -> Calibration:
    """The statistics in the dtype that `model` computes in. Raises SettingError for those of another model."""
    check_statistics(calibration, model)
    dtype, rollouts = model.tree.patch_embedding.weight.dtype, []
    for rollout in calibration.rollouts:
        calls = tuple(replace(call, latents=call.latents.to(dtype)) for call in rollout.calls)
        rollouts.append(Rollout(rollout.embeddings.to(dtype), calls))
    return replace(calibration, rollouts=tuple(rollouts))


def check_statistics(calibration: Calibration, model: Model) -> None:
    """Raise SettingError for statistics of another model, or of another family."""
    if calibration.model != identity(model):
        raise SettingError("The statistics are those of another model; calibrate this one.")
    if calibration.preset_name != model.preset_name:
        raise SettingError(
            f"The statistics are those of another family, {calibration.preset_name}; calibrate this model as "
            f"{model.preset_name}."
        )
    if any(call.latents.shape[1] != model.config.in_dim for rollout in calibration.rollouts for call in rollout.calls):
        raise SettingError(
            f"The statistics are for latents with another number of channels than {model.config.in_dim}; calibrate "
            "again."
        )


def choice_of(
    model: Model,
    setting: Setting,
    rollouts: Sequence[Rollout],
    weights: Sequence[Sequence[float]],
    recipe: Recipe,
    work: Work | None,
    on_call: Callable[[], object],
) -> Choice:
    """The bits that an interrupted run had chosen, or those that are chosen now."""
    found = recall_choice(work)
    if found is None:
        found = choose_bits(model, setting, rollouts, weights, recipe, on_call)
        keep_choice(found, work)
    return found


def recall_choice(work: Work | None) -> Choice | None:
    """The bits that an interrupted run had chosen."""
    found = None if work is None else work.note(CHOICE)
    if found is None:
        return None
    groups = [(tuple(names), bits, effects) for names, bits, effects in found.pop("groups")]
    effects = {names: effect for names, _, effect in groups if effect}
    return Choice(Allocation({names: bits for names, bits, _ in groups}, **found), effects)


def keep_choice(choice: Choice, work: Work | None) -> None:
    """Store the chosen bits."""
    found = choice.allocation
    if work is not None:
        groups = [(names, bits, choice.effects.get(names)) for names, bits in found.bits.items()]
        work.note(CHOICE, {"groups": groups, "nbytes": found.nbytes, "error": found.error})


@contextmanager
def offload_for(states: float, device: torch.device, work: Work | None) -> Iterator[OffloadAllocator]:
    """Room for so many bytes: on the card `device` where that has enough, else in memory, or on the job's disk."""
    if states + ON_CARD <= free_memory(device):
        yield OffloadAllocator(None, device)
    elif work is None or states <= IN_MEMORY:
        yield OffloadAllocator(None)
    else:
        with work.offload_folder() as folder:
            yield OffloadAllocator(folder)


def free_memory(device: torch.device) -> float:
    """Bytes that tensors can still take on a card, what PyTorch holds in reserve included; 0 of all else."""
    if device.type != "cuda":
        return 0.0
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def state_bytes(rollouts: Sequence[Rollout], model: Model) -> float:
    """Bytes of the states that walk through the blocks."""
    config = model.config
    tokens = sum(rollout.tokens for rollout in rollouts) / prod(config.patch_size)
    return 3 * tokens * config.dim * model.tree.patch_embedding.weight.itemsize


def calibration_notes(calibration: Calibration) -> dict[str, object]:
    """What the file's metadata says of the calibration."""
    measured = None if calibration.measured_as is None else json.loads(calibration.measured_as.to_json())
    return {
        "prompts": calibration.prompts,
        "size": calibration.size,
        "frames": calibration.frames,
        "reach": calibration.horizon,
        "measured_as": measured,
    }


def layer_notes(reports: Sequence[LayerReport]) -> dict[str, object]:
    """The reports as the file's metadata holds them."""
    return {r.name: {k: v for k, v in asdict(r).items() if k != "name" and v is not None} for r in reports}

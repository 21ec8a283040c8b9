"""The file of a calibration's statistics (docs/format.md), both ways."""

from __future__ import annotations

import json
from importlib.metadata import version
from math import isclose
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import __version__
from ..calibrate.calibration import Calibration
from ..calibrate.call_sensitivity import measured_shape, timesteps_of
from ..calibrate.horizon import full_horizon
from ..calibrate.rollout import Call, Rollout
from ..errors import CheckpointError, SettingError
from ..files import no_file, replacing
from ..recipe import Recipe
from ..stream.presets import find_preset
from ..stream.sampler import spans
from .inputs import COMPUTED
from .read import STATISTICS
from .write import save_file

FORMAT = 1
"""Version of the file format."""


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write statistics as safetensors, to a temporary name first. Raises SettingError where that cannot be done."""
    tensors: dict[str, Tensor] = {"errors": calibration.errors, "call_errors": calibration.call_errors}
    calls = []
    for i, rollout in enumerate(calibration.rollouts):
        tensors[f"rollouts.{i}.text_embeds"] = rollout.embeddings
        for j, call in enumerate(rollout.calls):
            tensors[f"rollouts.{i}.calls.{j}"] = call.latents
        calls.append([[call.chunk, call.step, call.timestep, call.start] for call in rollout.calls])
    about = {
        "model": calibration.model,
        "preset": calibration.preset_name,
        "size": list(calibration.size),
        "frames": calibration.frames,
        "reach": list(calibration.horizon),
        "measured_as": None if calibration.measured_as is None else json.loads(calibration.measured_as.to_json()),
        "calls": calls,
        "versions": {"qarvd": __version__, "torch": version("torch"), "format": FORMAT},
    }
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {STATISTICS: json.dumps(about)})


def is_calibration(path: Path) -> bool:
    """Whether a file says that it holds statistics."""
    try:
        with safe_open(path, "pt") as file:
            return STATISTICS in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_calibration(path: Path) -> Calibration:
    """Read statistics. Raises CheckpointError, saying what is wrong, for any other file."""
    if not path.is_file():
        raise CheckpointError(no_file(path))
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error
    if STATISTICS not in metadata:
        raise CheckpointError(f"{path} holds no calibration statistics; make them with `python -m qarvd calibrate`.")
    try:
        return _assemble(json.loads(metadata[STATISTICS]), tensors)
    except (SettingError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise CheckpointError(f"{path}: these statistics cannot be used ({why}); calibrate again.") from error


def _assemble(about: dict[str, Any], tensors: dict[str, Tensor]) -> Calibration:
    if (stored := about["versions"]["format"]) != FORMAT:
        raise ValueError(f"they are of format {stored!r}, this version reads {FORMAT}")
    size, frames, preset = tuple(map(_whole, about["size"])), _whole(about["frames"]), str(about["preset"])
    height, width = size
    horizon = tuple(map(_whole, about["reach"]))
    family = find_preset(preset)
    chunk_frames = family.chunk_frames
    if not 0 < frames <= chunk_frames * len(horizon) < frames + chunk_frames:
        raise ValueError(f"{frames} frames and a reach of {len(horizon)} chunks do not fit together")
    if not all(1 <= far <= most for far, most in zip(horizon, full_horizon(len(horizon)), strict=True)):
        raise ValueError(f"the reach is {horizon}")
    shapes = [(len(span), height, width) for span in spans(frames, chunk_frames)]
    steps = timesteps_of(family.schedule, len(horizon))
    expected = [(k, i, time) for k, times in enumerate(steps) for i, time in enumerate(times)][:-1]
    rollouts = tuple(
        _rollout(i, calls, tensors, shapes, chunk_frames, expected) for i, calls in enumerate(about["calls"])
    )
    prompts = sum(len(rollout.embeddings) for rollout in rollouts)
    errors = tensors["errors"]
    if not prompts:
        raise ValueError("they hold no roll-outs")
    if errors.ndim != 3 or len(errors) > prompts or errors.shape[1:] != (len(horizon), len(horizon)):
        raise ValueError(f"the errors have shape {tuple(errors.shape)}")
    if not (_finite(errors) and (errors >= 0).all()):
        raise ValueError("the errors are not finite, or negative")
    calls = tensors["call_errors"]
    if calls.ndim != 3 or len(calls) > prompts or calls.shape[1:] != measured_shape([len(times) for times in steps]):
        raise ValueError(f"the errors of calls have shape {tuple(calls.shape)}")
    if not (_finite(calls) and (calls >= 0).all()):
        raise ValueError("the errors of calls are not finite, or negative")
    measured = about.get("measured_as")
    recipe = None if measured is None else Recipe.from_json(json.dumps(measured))
    return Calibration(str(about["model"]), preset, (height, width), frames, rollouts, errors, horizon, calls, recipe)


def _rollout(
    number: int,
    calls: Any,
    tensors: dict[str, Tensor],
    shapes: list[tuple[int, int, int]],
    chunk_frames: int,
    expected: list[tuple[int, int, float]],
) -> Rollout:
    """Roll-out `number`: chunks of `shapes` (frames, height, width), calls as `expected` (chunk, step, timestep)."""
    text = tensors[f"rollouts.{number}.text_embeds"]
    if text.ndim != 3 or not _finite(text):
        raise ValueError(f"the text embeddings, of shape {tuple(text.shape)}, are not finite or do not have three axes")
    made = []
    for j, (chunk, step, timestep, start) in enumerate(calls):
        call = Call(
            _whole(chunk), _whole(step), float(timestep), _whole(start), tensors[f"rollouts.{number}.calls.{j}"]
        )
        if not 0 <= call.chunk < len(shapes) or call.start != call.chunk * chunk_frames:
            raise ValueError(f"a call of chunk {chunk} starts at frame {start}")
        batch, *shape = call.latents.shape[:1] + call.latents.shape[2:]
        if batch != len(text) or tuple(shape) != shapes[call.chunk] or not call.latents.numel():
            raise ValueError(f"a call's latents have shape {tuple(call.latents.shape)}")
        if not _finite(call.latents):
            raise ValueError("a call's latents are not finite")
        made.append(call)
    order = [(call.chunk, call.step) for call in made]
    if order != [(chunk, step) for chunk, step, _ in expected]:
        raise ValueError(f"the calls are of chunks and steps {order}")
    for call, (_, _, timestep) in zip(made, expected, strict=True):
        if not isclose(call.timestep, timestep, rel_tol=1e-6):
            raise ValueError(f"a call is at timestep {call.timestep}, its family's is {timestep}")
    return Rollout(text, tuple(made))


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _finite(tensor: Tensor) -> bool:
    return tensor.dtype in COMPUTED and bool(torch.isfinite(tensor).all())

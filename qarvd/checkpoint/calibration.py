"""The file of a calibration's statistics (docs/format.md), both ways."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__
from ..calibrate.calibration import Calibration
from ..calibrate.reach import full_reach
from ..calibrate.rollout import Call, Rollout
from ..errors import CheckpointError
from ..files import replacing

FORMAT = 1
"""Version of the file format."""
KEY = "qarvd_calibration"


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write statistics as safetensors, to a temporary name first."""
    tensors: dict[str, Tensor] = {"errors": calibration.errors}
    calls = []
    for i, rollout in enumerate(calibration.rollouts):
        tensors[f"rollouts.{i}.text_embeds"] = rollout.embeddings
        for j, call in enumerate(rollout.calls):
            tensors[f"rollouts.{i}.calls.{j}"] = call.latents
        calls.append([[call.chunk, call.timestep, call.start] for call in rollout.calls])
    about = {
        "model": calibration.model,
        "preset": calibration.preset_name,
        "size": list(calibration.size),
        "frames": calibration.frames,
        "reach": list(calibration.reach),
        "calls": calls,
        "versions": {"qarvd": __version__, "torch": version("torch"), "format": FORMAT},
    }
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {KEY: json.dumps(about)})
        except SafetensorError as error:
            raise CheckpointError(f"{path} could not be written: {error}.") from error


def load_calibration(path: Path) -> Calibration:
    """Read statistics. Raises CheckpointError, saying what is wrong, for any other file."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error
    if KEY not in metadata:
        raise CheckpointError(f"{path} holds no calibration statistics; make them with `python -m qarvd calibrate`.")
    try:
        return _assemble(json.loads(metadata[KEY]), tensors)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: the statistics are damaged ({error}); calibrate again.") from error


def _assemble(about: dict[str, Any], tensors: dict[str, Tensor]) -> Calibration:
    if (stored := about["versions"]["format"]) != FORMAT:
        raise ValueError(f"they are of format {stored!r}, this version reads {FORMAT}")
    height, width = map(int, about["size"])
    rollouts = []
    for i, calls in enumerate(about["calls"]):
        text = tensors[f"rollouts.{i}.text_embeds"]
        made = tuple(
            Call(int(chunk), float(timestep), int(start), tensors[f"rollouts.{i}.calls.{j}"])
            for j, (chunk, timestep, start) in enumerate(calls)
        )
        for call in made:
            if call.latents.ndim != 5 or len(call.latents) != len(text) or call.latents.shape[3:] != (height, width):
                raise ValueError(f"a call's latents have shape {tuple(call.latents.shape)}")
            if not torch.isfinite(call.latents).all():
                raise ValueError("a call's latents are not finite")
        rollouts.append(Rollout(text, made))
    errors, reach = tensors["errors"], tuple(map(int, about["reach"]))
    if errors.ndim != 3 or errors.shape[1:] != (len(reach), len(reach)) or not torch.isfinite(errors).all():
        raise ValueError(f"the errors, of shape {tuple(errors.shape)}, do not fit or are not finite")
    if not all(1 <= far <= most for far, most in zip(reach, full_reach(len(reach)), strict=True)):
        raise ValueError(f"the reach is {reach}")
    preset, frames = str(about["preset"]), int(about["frames"])
    return Calibration(str(about["model"]), preset, (height, width), frames, tuple(rollouts), errors, reach)

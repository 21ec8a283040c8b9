"""`compare A B`: two checkpoints, or two clips."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import av
import torch
from av.error import FFmpegError
from torch import Tensor, nn

from ..checkpoint.inputs import finite_floats
from ..checkpoint.model import Model
from ..checkpoint.read import read
from ..errors import CheckpointError, ShapeError
from ..files import has_suffix, no_file
from ..ops.linear import QuantizedLinear
from ..ops.weight import QuantizedWeight
from ..quantize.model import linear_groups, relative_error
from ..report.tables import size_text, text_table
from .common import add_model, alike, load_any_family

HELP = "compare two checkpoints layer by layer, or two clips (latents or mp4) frame by frame"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "a", "b", also="; or a clip: latents (.safetensors) or a video (.mp4)")
    parser.add_argument("--chunk-frames", type=int, default=3, help="frames per row when comparing clips (3)")


def run(args: argparse.Namespace) -> None:
    clips = [read_clip(name) for name in (args.a, args.b)]
    kinds = [kind(name, clip) for name, clip in zip((args.a, args.b), clips, strict=True)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(f"{args.a} is {kinds[0]} and {args.b} is {kinds[1]}; give two files of the same kind.")
    if clips[0] is not None and clips[1] is not None:
        print(text_table(compare_clips(clips[0], clips[1], max(1, args.chunk_frames))))
    else:
        print(text_table(compare_models(args.a, args.b, args.preset)))


def kind(name: str, clip: Tensor | None) -> str:
    """What the file `name` holds, whose frames are `clip`."""
    if clip is None:
        return "a checkpoint"
    return "a video" if has_suffix(Path(name), ".mp4") else "latents"


def read_clip(name: str) -> Tensor | None:
    """The frames [frames, ...] of a video or of latents; None where the file is no clip."""
    path = Path(name)
    if name != "demo" and not path.is_file():
        raise CheckpointError(no_file(path))
    if has_suffix(path, ".mp4"):
        try:
            with av.open(str(path)) as container:
                frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        except (FFmpegError, IndexError) as error:
            raise CheckpointError(f"{path} cannot be read as a video: {error}.") from error
        if not frames:
            raise CheckpointError(f"{path} holds no frames.")
        return torch.stack(frames).float() / 255
    if has_suffix(path, ".safetensors"):
        latents = read(path).tensors.get("latents")
        if latents is not None and latents.ndim != 5:
            raise CheckpointError(f"{path} holds latents of shape {tuple(latents.shape)}; five axes were expected.")
        return None if latents is None else finite_floats(latents, path).float().movedim(2, 0)
    return None


def compare_clips(a: Tensor, b: Tensor, chunk_frames: int) -> list[dict[str, object]]:
    """PSNR of each run of `chunk_frames` frames, and of all; the peak is the range of `a`."""
    if a.shape != b.shape:
        raise ShapeError(
            f"The clips have shapes {tuple(a.shape)} and {tuple(b.shape)}; only clips of the same shape can be "
            "compared."
        )
    peak = (a.max() - a.min()).item()

    def row(label: str, x: Tensor, y: Tensor) -> dict[str, object]:
        error = (x - y).square().mean().item()
        ratio = 10 * math.log10(peak**2 / error) if error and peak else math.inf
        return {"frames": label, "mean squared error": error, "PSNR (dB)": ratio}

    parts = range(0, len(a), chunk_frames)
    rows = [
        row(f"{f}-{min(f + chunk_frames, len(a)) - 1}", a[f : f + chunk_frames], b[f : f + chunk_frames]) for f in parts
    ]
    return [*rows, row("all", a, b)]


def compare_models(a: str, b: str, preset: str | None) -> list[dict[str, object]]:
    """Size and relative squared difference of every linear that can be quantized."""
    (first, _), (second, _) = load_any_family(a, preset), load_any_family(b, preset)
    if not alike(first.config, second.config):
        raise ShapeError(f"{a} and {b} are models of different dimensions: {first.config} and {second.config}.")
    rows: list[dict[str, object]] = []
    for name in (n for group in linear_groups(first.config.num_layers) for n in group):
        x, y = _stored(first, name), _stored(second, name)
        rows.append(
            {
                "linear": name,
                "size of A": size_text(x.nbytes),
                "size of B": size_text(y.nbytes),
                "squared difference": relative_error(_floats(x), _floats(y)),
            }
        )
    return rows


def _stored(model: Model, name: str) -> Tensor | QuantizedWeight:
    linear = model.tree.get_submodule(name)
    assert isinstance(linear, QuantizedLinear | nn.Linear)
    return linear.weight


def _floats(weight: Tensor | QuantizedWeight) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedWeight) else weight

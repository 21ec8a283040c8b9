"""What several verbs need: finding a model, a device, and saying things once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.model import Model, load, read_metadata
from ..demo.bundle import MODEL
from ..errors import SettingError
from ..files import has_suffix, part_beside, written_file
from ..ops.cuda.cache import user_folder
from ..ops.cuda.device import load as load_kernels
from ..ops.linear import QuantizedLinear
from ..stream.presets import PRESETS, Preset
from ..wan.config import WanConfig

DEVICE_HELP = "cpu, cuda or cuda:N (auto: the first card, if there is one)"
CHUNKS = 7
"""Of a clip, where nothing is said."""
SIZE = 832, 480
"""Width and height, in pixels, of what real checkpoints generate where nothing is said."""
STAND_IN = "self-forcing"
"""A family as good as any other where nothing is streamed."""
MOST_FRAMES = 100_000
"""Latent frames of a clip: seven hours."""


def add_model(parser: argparse.ArgumentParser, *names: str) -> None:
    """Positional model files and the choice of their family."""
    for name in names:
        parser.add_argument(name, help="a checkpoint file, or 'demo' for the bundled model")
    parser.add_argument(
        "--preset", choices=PRESETS, help="the family of the checkpoint, if the file does not record it"
    )


def add_size(parser: argparse.ArgumentParser) -> None:
    """The size of what is generated."""
    parser.add_argument("--size", help=f"width x height in pixels ({'x'.join(map(str, SIZE))}; the demo's is 32x32)")


def load_model(name: str, preset: str | None = None) -> Model:
    """Load a checkpoint file, or the bundled demo model."""
    return load(model_path(name), preset)


def load_any_family(name: str, preset: str | None = None) -> tuple[Model, bool]:
    """A model of which only the layers matter, and whether its family is known; of an unknown one, it is a stand-in."""
    known = preset is not None or "preset" in read_metadata(model_path(name))
    return load_model(name, preset if known else STAND_IN), known


def alike(a: WanConfig, b: WanConfig) -> bool:
    """Whether tensors have the same shapes in both: they tell neither the number of heads nor the length of texts."""
    return replace(a, num_heads=b.num_heads, text_len=b.text_len) == b


def model_path(name: str) -> Path:
    """Where a model lies."""
    return MODEL if name == "demo" else Path(name)


def place(model: Model, device: str) -> None:
    """Move to `device` in the dtype it computes in (float32 on a CPU, else bfloat16), and load its kernels."""
    target = pick_device(device)
    if target.type == "cuda":
        kernels = load_kernels(target, kernel_folder(), say)
        if isinstance(kernels, str):
            say(f"The CUDA kernels can't be used: {kernels}. Plain torch is used instead.")
    model.tree.to(target, torch.float32 if target.type == "cpu" else torch.bfloat16)


def ready(model: Model, device: str) -> None:
    """Place on `device` and prepare."""
    place(model, device)
    for module in model.tree.modules():
        if isinstance(module, QuantizedLinear):
            module.prepare()


def kernel_folder() -> Path | None:
    """Where this user's compiled CUDA kernels are kept; None, nowhere, for a user without a home folder."""
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the system does not know the user, as in some containers
        home = None
    return user_folder(sys.platform, os.environ, home)


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA card, else the CPU. Raises SettingError for a device that is not there."""
    cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    known = {"cpu": "cpu", "auto": (*cards, "cpu")[0], **{card: card for card in cards}}
    if cards:
        known["cuda"] = cards[0]
    if name not in known:
        raise SettingError(f"There is no device {name!r} here; choose from {', '.join(known)}.")
    return torch.device(known[name])


def check_out(path: Path, suffix: str, *inputs: Path | str | None) -> None:
    """Refuse, before the work, a name of another kind of file, an input's, or one that nothing can be written to."""
    if not has_suffix(path, suffix):
        raise SettingError(f"{path} must end in {suffix}.")
    if os.path.realpath(path) in {os.path.realpath(name) for name in inputs if name is not None}:
        raise SettingError(f"{path} is also an input, and writing would destroy it; give another name to write.")
    part_beside(path).unlink()


def wanted_frames(chunks: int | None, frames: int | None, preset: Preset) -> int:
    """Latent frames to generate. Raises SettingError for none, and for more than memory could ever hold."""
    option, asked = ("--chunks", CHUNKS if chunks is None else chunks) if frames is None else ("--frames", frames)
    count = asked if frames is not None else asked * preset.chunk_frames
    if count < 1:
        raise SettingError(f"{option} must be at least 1.")
    if count > MOST_FRAMES:
        raise SettingError(f"{option} {asked} makes {count:,} latent frames; {MOST_FRAMES:,} is the most.")
    return count


def latent_size(text: str | None, model: Model, initial: Tensor | None = None) -> tuple[int, int]:
    """Height and width of the latents of videos of a size in pixels, WIDTHxHEIGHT: '832x480' -> (60, 104).

    Without a text, of those that go on from `initial` latents, else of the usual size. Raises SettingError for a text
    that is no size, and for a size that the model cannot have.
    """
    scale = model.preset.scale
    width, height = scale.only or SIZE
    if text is not None:
        width, height = parse_size(text)
    elif initial is not None:
        width, height = scale.side * initial.shape[4], scale.side * initial.shape[3]
    return scale.latent_size(model.config, width, height)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height: '832x480' -> (832, 480). Raises SettingError for another text."""
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.strip().lower())
    if not found:
        raise SettingError(f"The size {text!r} is not WIDTHxHEIGHT in pixels, such as 832x480.")
    return int(found[1]), int(found[2])


def work_folder(out: Path) -> Path:
    """Where a job that is to write `out` keeps what it has finished."""
    out = written_file(out)  # the disk of the result, so that it need not be copied in the end
    return out.with_name(f"{out.name}.work")


def counted(count: int, noun: str) -> str:
    """'1 prompt', '3 prompts'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def say(text: str) -> None:
    """Tell the user something that is not the result."""
    print(text, file=sys.stderr)

"""What several verbs need: finding a model, a device, and saying things once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .. import api
from ..checkpoint.model import Model, load, read_metadata
from ..demo.bundle import MODEL
from ..errors import SettingError
from ..files import has_suffix, part_beside, written_file
from ..jobs import placement
from ..jobs.placement import pick_device
from ..stream.presets import PRESETS, Preset
from ..stream.scale import USUAL
from ..wan.config import WanConfig

DEVICE_HELP = "cpu, cuda, cuda:N, mps or xpu (auto: the first CUDA card, if there is one, else the CPU)"
CHUNKS = 7
"""Of a clip, where nothing is said."""
STAND_IN = "self-forcing"
"""A family as good as any other where nothing is streamed."""
MOST_FRAMES = 100_000
"""Latent frames of a clip: seven hours."""


def add_model(parser: argparse.ArgumentParser, *names: str, also: str = "") -> None:
    """Positional model files, or what they may `also` be, and the choice of their family."""
    for name in names:
        parser.add_argument(name, help=f"a checkpoint file, or 'demo' for the bundled model{also}")
    parser.add_argument(
        "--preset", choices=PRESETS, help="the family of the checkpoint, if the file does not record it"
    )


def add_size(parser: argparse.ArgumentParser) -> None:
    """The size of what is generated."""
    parser.add_argument("--size", help=f"width x height in pixels ({'x'.join(map(str, USUAL))}; the demo's is 32x32)")


def load_model(name: str, preset: str | None = None) -> Model:
    """Load a checkpoint file, or the bundled demo model."""
    return load(model_path(name), preset)


def load_any_family(name: str, preset: str | None = None) -> tuple[Model, bool]:
    """A model of which only the layers matter, and whether its family is known; of an unknown one, it is a stand-in."""
    known = preset is not None or "preset" in read_metadata(model_path(name))
    return load_model(name, preset if known else STAND_IN), known


UNTOLD = ("num_heads", "text_len")
"""Dimensions that the shapes of tensors do not tell."""


def alike(a: WanConfig, b: WanConfig) -> bool:
    """Whether tensors have the same shapes in both."""
    return replace(a, **{name: getattr(b, name) for name in UNTOLD}) == b


def model_path(name: str) -> Path:
    """Where a model lies."""
    return MODEL if name == "demo" else Path(name)


def place(model: Model, device: str) -> None:
    """Move to `device` in the dtype it computes in, and load its kernels."""
    placement.place(model, pick_device(device))


def ready(model: Model, device: str) -> None:
    """Place on `device` and prepare."""
    place(model, device)
    placement.prepare(model)


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
    return api.latent_size(model, None if text is None else parse_size(text), initial)


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

"""The library in a few lines: `from qarvd import load, quantize, save, stream` (docs/python.md)."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .calibrate.frame_weights import LEAST_PROMPTS
from .calibrate.prompts import padded
from .checkpoint import model as files
from .checkpoint.inputs import read_embeddings
from .checkpoint.model import Model
from .demo import bundle
from .demo.prompts import parse
from .errors import PromptError, SettingError, ShapeError
from .jobs import quantize as quantizing
from .jobs.budget import check_target
from .jobs.calibrate import SEED, CalibrationPlan, calibrate
from .jobs.placement import pick_device, place, prepare
from .jobs.time_budget import CHOOSING, FITTING
from .ops.linear import configure
from .recipe import RECIPES, Recipe
from .stream.rollout import roll_out
from .stream.sampler import Chunk

__all__ = ["load", "quantize", "save", "stream"]

Prompts = str | Path | Sequence[str | Path] | Tensor
"""One prompt or several: sentences for the demo model, else safetensors files of embeddings, or embeddings themselves,
[prompts, tokens, text_dim]."""


def load(source: str | Path = "demo", preset: str | None = None, device: str = "auto") -> Model:
    """Load a checkpoint file, or "demo", the bundled model, onto a device: "auto", "cpu", "cuda" or "cuda:1".

    `preset` names the family of a file that does not say so itself. Raises CheckpointError for a file that holds no
    model that can be streamed, and SettingError for a device that is not here.
    """
    configure(os.environ)
    target = pick_device(device)
    model = files.load(bundle.MODEL if source == "demo" else Path(source), preset)
    place(model, target)
    return model


def save(model: Model, path: str | Path) -> None:
    """Write a model as safetensors, whole or not at all. Raises SettingError for a place that cannot be written to."""
    files.save(model, Path(path))


def quantize(
    model: Model,
    recipe: str | Recipe = "w8a8",
    prompts: Prompts | None = None,
    *,
    chunks: int = 7,
    size: tuple[int, int] | None = None,
    seed: int = SEED,
    minutes: float | None = 30.0,
) -> Model:
    """A quantized copy of `model`, where that lies; `recipe` is the name of one of `RECIPES`, or one of your own.

    With `prompts`, at least 4, the model is calibrated on clips of so many `chunks` and of `size` (width, height) in
    pixels; of the prompts as many are taken as fit the `minutes` (None: all). Without prompts, weights are rounded to
    nearest, which is quick and less good. Raises SettingError for a recipe that needs prompts and gets none, and other
    QarvdErrors for what the model cannot be calibrated with.
    """
    chosen = named_recipe(recipe) if isinstance(recipe, str) else recipe
    own = replace(model, tree=copy.deepcopy(model.tree), notes=dict(model.notes))
    if prompts is None:
        if chosen.target is not None or chosen.stream_chunks is not None:
            raise SettingError("The recipe's target, or its stream_chunks, need calibration; give prompts.")
        return quantizing.quantize(own, chosen.without_data())[0]
    texts = embeddings_of(model, prompts)
    if len(texts) < LEAST_PROMPTS:
        raise PromptError(f"Calibration needs at least {LEAST_PROMPTS} prompts; {len(texts)} were given.")
    check_target(own, chosen)
    quantizing.check_stream(chosen, chunks)
    plan = CalibrationPlan(
        latent_size(model, size),
        chunks * model.preset.chunk_frames,
        chosen,
        seed,
        horizon="short",
        minutes=minutes,
        rest=FITTING if chosen.target is None else FITTING + CHOOSING,
    )
    return quantizing.quantize(own, chosen, calibrate(own, texts, plan))[0]


def stream(
    model: Model,
    prompts: Prompts,
    chunks: int | None = 7,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    window: int | None = None,
    sink: int | None = None,
    cache: str = "16-bit",
    initial: Tensor | None = None,
    changes: Mapping[int, Prompts] | None = None,
) -> Iterator[Chunk]:
    """Yield clean chunks, oldest first, of one video for each prompt, with the seeds `seed`, `seed` + 1, ...

    `chunks=None` goes on without end, which needs a window. `size` is (width, height) in pixels. `window` and `sink`,
    in latent frames, replace the family's; `cache` is "16-bit", "int8" or "int4". The videos go on from `initial`
    latents [batch, channels, frames, height, width]. `changes` holds prompts that take over, by the number of the chunk
    from which on they do; 2 is the second. Raises QarvdErrors, before the first chunk, for what the model cannot do.
    """
    if chunks is not None and (not isinstance(chunks, int) or chunks < 1):
        raise SettingError(f"{chunks} chunks were asked for; give a whole number from 1 on, or None for no end.")
    if initial is not None and initial.ndim != 5:
        needed = "[batch, channels, frames, height, width]"
        raise ShapeError(f"The initial latents have shape {tuple(initial.shape)}; {needed} is needed.")
    preset = replace(
        model.preset,
        window=model.preset.window if window is None else window,
        sink=model.preset.sink if sink is None else sink,
    )
    weight = model.tree.patch_embedding.weight
    texts = embeddings_of(model, prompts).to(weight)
    later = {at - 1: embeddings_of(model, other).to(weight) for at, other in (changes or {}).items()}
    for at, other in later.items():
        if len(other) != len(texts):
            raise PromptError(f"changes[{at + 1}] must hold one prompt for each video: {len(texts)}, not {len(other)}.")
    frames = None if chunks is None else chunks * preset.chunk_frames
    held = None if frames is None else frames + (0 if initial is None else initial.shape[2])
    room = preset.cache(held, cache)
    prepare(model)
    shape, seeds = latent_size(model, size, initial), range(seed, seed + len(texts))
    return roll_out(model.tree, model.config, preset, texts, shape, frames, seeds, room, initial, prompts=later)


def named_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises SettingError, listing those there are."""
    if name not in RECIPES:
        raise SettingError(f"There is no recipe {name!r}; choose from {', '.join(RECIPES)}, or make a Recipe.")
    return RECIPES[name]


def embeddings_of(model: Model, prompts: Prompts) -> Tensor:
    """Embeddings [prompts, tokens, text_dim]; shorter ones are followed by zeros, as the model does it."""
    if isinstance(prompts, Tensor):
        return prompts[None] if prompts.ndim == 2 else prompts
    several = [prompts] if isinstance(prompts, str | Path) else prompts
    if not several:
        raise PromptError("No prompt was given; give at least one.")
    if model.preset_name == "demo":
        return bundle.embed([parse(str(text)) for text in several])
    parts = [text for name in several for text in read_embeddings(str(name))]
    if len({part.shape[1] for part in parts}) > 1:
        raise PromptError("The prompts come from text encoders of different widths; encode them with the model's own.")
    return padded(parts)


def latent_size(model: Model, size: tuple[int, int] | None, initial: Tensor | None = None) -> tuple[int, int]:
    """Height and width of the latents of a video of `size` (width, height) in pixels, or of what it goes on from."""
    scale = model.preset.scale
    width, height = scale.usual
    if size is not None:
        if not isinstance(size, tuple | list) or len(size) != 2 or not all(isinstance(length, int) for length in size):
            raise SettingError(f"The size {size!r} is not (width, height) in pixels, such as (832, 480).")
        width, height = size
    elif initial is not None:
        height, width = (scale.side * length for length in initial.shape[3:])
    return scale.latent_size(model.config, width, height)

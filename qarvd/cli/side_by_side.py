"""Stream the same prompts from the same noise with several models, for the report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.inputs import read_embeddings
from ..checkpoint.model import Model
from ..demo import bundle, pixels, prompts
from ..demo.experiment import chunk_errors
from ..errors import SettingError
from ..report.page import Chapter
from ..report.quantization import drift_chapter
from ..report.strips import strips
from ..stream.preview import rgb_preview
from ..stream.rollout import roll_out
from .common import latent_size, ready, wanted_frames

FULL = "full"
DEMO_PROMPTS = 16
"""Held-out prompts that the demo streams where none are given."""
SHOWN = 4
"""Prompts whose videos are shown."""


@dataclass(frozen=True)
class Cases:
    """What is streamed by every variant."""

    embeddings: Tensor
    """[prompts, tokens, text_dim]."""
    prompts: list[str]
    size: tuple[int, int]
    frames: int
    chunk_frames: int
    seeds: range
    batch: int
    decode: Callable[[Tensor], Tensor]
    """Latents [prompts, channels, frames, height, width] -> pixels."""


def wanted_cases(args: argparse.Namespace, model: Model) -> Cases | None:
    """What the user wants to see; None where there is no prompt."""
    frames, size = wanted_frames(args.chunks, None, model.preset), latent_size(args.size, model)
    chunk_frames = model.preset.chunk_frames
    if model.preset_name == "demo":
        held_out = prompts.split_prompts()[1][:DEMO_PROMPTS]
        chosen = [prompts.parse(text) for text in args.prompt] if args.prompt else held_out
        labels = [str(prompt) for prompt in chosen]
        seeds = range(args.seed, args.seed + len(chosen))
        embeddings = bundle.embed(chosen)
        return Cases(embeddings, labels, size, frames, chunk_frames, seeds, len(chosen), pixels.decode)
    if not args.prompt:
        return None
    read = {name: read_embeddings(name) for name in args.prompt}
    shapes = {tuple(tensor.shape[1:]) for tensor in read.values()}
    if len(shapes) > 1:
        raise SettingError(
            f"The prompts have different shapes, {sorted(shapes)}; encode them together, so that they have one."
        )
    labels = [f"{Path(name).stem} {i + 1}" for name, tensor in read.items() for i in range(len(tensor))]
    embeddings, seeds = torch.cat(list(read.values())), range(args.seed, args.seed + len(labels))
    return Cases(embeddings, labels, size, frames, chunk_frames, seeds, 1, preview)


def preview(latents: Tensor) -> Tensor:
    """A small RGB look at Wan latents: [prompts, frames, height, width, 3]."""
    return torch.stack([rgb_preview(latent) for latent in latents])


def streamed(model: Model, cases: Cases, device: str, name: str) -> Tensor:
    """The latents of all cases, float32 [prompts, channels, frames, height, width] on the CPU."""
    ready(model, device)
    weight = model.tree.patch_embedding.weight
    batches = []
    total = -(-len(cases.seeds) // cases.batch) * -(-cases.frames // cases.chunk_frames)
    with tqdm(total=total, unit="chunk", desc=f"streaming {name}", leave=False) as bar:
        for first in range(0, len(cases.seeds), cases.batch):
            some = slice(first, first + cases.batch)
            embeddings = cases.embeddings[some].to(weight)
            parts = []
            for chunk in roll_out(
                model.tree, model.config, model.preset, embeddings, cases.size, cases.frames, cases.seeds[some]
            ):
                parts.append(chunk.latents.float().cpu())
                bar.update()
            batches.append(torch.cat(parts, dim=2))
    return torch.cat(batches)


def compare(latents: Mapping[str, Tensor], cases: Cases, about: list[dict[str, object]]) -> Chapter:
    """The chapter on drift; the squared error of each variant joins its row in `about`."""
    full = latents[FULL]
    errors = {name: chunk_errors(found, full, cases.chunk_frames) for name, found in latents.items() if name != FULL}
    for row, name in zip(about, errors, strict=True):
        row["squared error against full"] = (latents[name] - full).square().mean().item()
        row["in the last chunk"] = errors[name][-1]
    clips = {name: cases.decode(found[:SHOWN]) for name, found in latents.items()}
    return drift_chapter(errors, len(cases.prompts), strips(clips, cases.prompts[:SHOWN]))

"""What enters every linear of a model while it streams calibration prompts, all kept at once as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qarvd.calibrate.rollout import Setting
from qarvd.stream.noise import from_seeds
from qarvd.stream.sampler import Denoiser, denoise, write
from qarvd.wan.forward import encode_text


@dataclass(frozen=True)
class Samples:
    """Inputs of one linear, a sample for each model call and prompt."""

    x: Tensor
    """[samples, tokens, in]."""
    chunk: Tensor
    """Of each sample; 0 for the text, which is read once."""


@torch.no_grad()
def collect(
    tree: Any, setting: Setting, names: Sequence[str], text: Tensor, seeds: Sequence[int]
) -> dict[str, Samples]:
    """Stream prompts `text` [prompts, tokens, text_dim], all in one batch, and keep what linears `names` read.

    As published, the last chunk is written into the cache like any other.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda module, inputs: seen[name].append(inputs[0].float().flatten(1, -2))

    hooks = [tree.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        draw, schedule = from_seeds(seeds, text.device, text.dtype), setting.preset.schedule
        denoiser = Denoiser(tree, setting.config, encode_text(tree, setting.config, text), setting.cache())
        for index, span in enumerate(setting.spans):
            noise = draw((len(seeds), setting.config.in_dim, len(span), *setting.size))
            write(denoiser, denoise(denoiser, noise, schedule, draw, index, span.start), schedule)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[tuple[int, ...], Samples] = {}
    same = {name: tuple(part.data_ptr() for part in parts) for name, parts in seen.items()}  # q, k and v read one input
    for name, place in same.items():
        parts = seen.pop(name)
        if place not in found:
            found[place] = _samples(parts, setting, len(text))
    return {name: found[place] for name, place in same.items()}


def _samples(parts: list[Tensor], setting: Setting, prompts: int) -> Samples:
    calls = [len(setting.preset.schedule.of_chunk(k)) + 1 for k in range(len(setting.spans))]
    chunks = [k for k, n in enumerate(calls) for _ in range(n)] if len(parts) > 1 else [0]
    assert len(chunks) == len(parts)
    return Samples(torch.cat(parts), torch.tensor(chunks).repeat_interleave(prompts))

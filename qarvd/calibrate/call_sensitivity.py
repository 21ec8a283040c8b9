"""How much of a chunk's effect on the video each of its model calls has: in the chunk itself and in the next one.

The first denoising steps are renoised away: on the demo model the first step's error leaves no trace and the last step
and the pass that fills the cache have nearly all of the effect. What is fitted should weigh its inputs accordingly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..float64 import to_float64
from ..stream.cache import KVCache
from ..stream.noise import from_tensors
from ..stream.sampler import Chunk, Denoiser, call, write
from ..stream.schedule import Schedule
from ..wan.forward import encode_text
from .cache_branch import branch_cache
from .rollout import Rollout, Setting, draw_noise

CHUNKS = 3
"""Chunks whose calls are measured, one by one; later ones are like the last of them."""
FOLLOWED = 2
"""Chunks that are generated with one call quantized, its own included."""
PROMPTS, BATCHES = 8, 2
"""Prompts, or batches of them, that calls are measured on, whichever are fewer; of a large model, two clips."""
LEAST = 0.01
"""Share, of an equal one, that a call without effect keeps."""
CERTAIN = 0.15
"""Share of its chunk's weight from which on a call is always fitted to."""


@torch.no_grad()
def call_errors(
    setting: Setting,
    full: Any,
    quantized: Any,
    embeddings: Tensor,
    seeds: Sequence[int],
    on_chunk: Callable[[], object] = lambda: None,
) -> Tensor:
    """What quantizing one model call at a time does: float64 [prompts, measured chunks, calls].

    Entry [b, k, i] is the mean squared error in the latents of chunk k and the next one when the tree `quantized` makes
    call i of chunk k, the last being the pass that fills the cache, and `full` all others, from the same noise.
    `embeddings` [prompts, tokens, text_dim]. `generated(setting)` chunks are generated, `on_chunk` hears of each.
    """
    schedule, spans = setting.preset.schedule, setting.spans[: CHUNKS + FOLLOWED - 1]
    frames = spans[-1].stop
    noise, fresh = draw_noise(setting, embeddings, seeds, len(spans))
    text, other_text = (encode_text(tree, setting.config, embeddings) for tree in (full, quantized))
    cache = setting.preset.cache(frames)  # has no room for chunks that are not generated

    def generate(cache: KVCache, index: int, changed: int | None = None) -> Tensor:
        """Chunk `index` with call `changed` quantized, its cache pass included."""
        main = Denoiser(full, setting.config, text, cache)
        other = replace(main, tree=quantized, text=other_text)
        x, start, source = noise[index], spans[index].start, from_tensors(fresh[index])
        steps = schedule.of_chunk(index)
        for step, timestep in enumerate(steps):
            if step:
                x = schedule.add_noise(x, source(x.shape), timestep)
            x = call(other if step == changed else main, schedule, x, index, step, timestep, start)
        write(other if changed == len(steps) else main, Chunk(index, start, x), schedule)
        on_chunk()
        return x

    with branch_cache(cache, frames) as ahead:
        clean = [generate(ahead, index) for index in range(len(spans))]
    rows = []
    for k in range(min(CHUNKS, len(spans))):
        row = []
        for changed in range(len(schedule.of_chunk(k)) + 1):
            followed = range(k, min(k + FOLLOWED, len(spans)))
            with branch_cache(cache, frames) as branching:
                branch = [generate(branching, j, changed if j == k else None) for j in followed]
            pairs = zip(branch, clean[k:], strict=False)
            errors = [(to_float64(a) - to_float64(b)).square().flatten(1).mean(1) for a, b in pairs]
            row.append(torch.stack(errors).mean(0).cpu())
        rows.append(row)
        write(Denoiser(full, setting.config, text, cache), Chunk(k, spans[k].start, clean[k]), schedule)
    found = torch.zeros(len(seeds), *nothing_measured(setting).shape[1:], dtype=torch.float64)
    for k, row in enumerate(rows):
        found[:, k, : len(row)] = torch.stack(row, 1)
    return found


def timesteps_of(schedule: Schedule, chunks: int) -> list[list[float]]:
    """Timesteps of the model calls of each chunk, that of the pass that fills the cache last."""
    return [[*schedule.of_chunk(k), schedule.context_noise] for k in range(chunks)]


def calls_of(setting: Setting) -> list[int]:
    """Model calls of each chunk, the pass that fills the cache included."""
    return [len(steps) for steps in timesteps_of(setting.preset.schedule, len(setting.spans))]


def nothing_measured(setting: Setting) -> Tensor:
    """The errors of no prompts: float64 [0, measured chunks, calls]."""
    return torch.zeros(0, *measured_shape(calls_of(setting)), dtype=torch.float64)


def measured_shape(calls: Sequence[int]) -> tuple[int, int]:
    """Measured chunks, and calls at most, of a clip with so many calls in each chunk."""
    return min(CHUNKS, len(calls)), max(calls[:CHUNKS])


def generated(setting: Setting) -> int:
    """How many chunks `call_errors` generates for a batch."""
    chunks = len(setting.spans)
    branches = (n * min(FOLLOWED, chunks - k) for k, n in enumerate(calls_of(setting)[:CHUNKS]))
    return min(chunks, CHUNKS + FOLLOWED - 1) + sum(branches)


def call_shares(errors: Tensor, calls: Sequence[int]) -> list[list[float]]:
    """Weight of each call of each chunk, of mean 1 over a chunk; `calls` [chunks] is how many a chunk has.

    `errors` as from `call_errors`; without any, all calls weigh alike.
    """
    if not len(errors):
        return [[1.0] * n for n in calls]
    means = errors.double().mean(0)
    shares = []
    for k, n in enumerate(calls):
        row = means[min(k, len(means) - 1)][:n]
        if len(row) < n or not row.sum() > 0:
            shares.append([1.0] * n)
            continue
        row = (row / row.mean()).clamp_min(LEAST)
        shares.append((row / row.mean()).tolist())
    return shares


def sample_calls(
    rollouts: Sequence[Rollout], weights: Sequence[Sequence[float]], seed: int = 0
) -> tuple[list[Rollout], list[list[float]]]:
    """Roll-outs without most of the calls that matter little, and `weights` [chunks][calls] that make up for it.

    A call of a share s < CERTAIN of its chunk's weight stays with a chance of s / CERTAIN, at its weight over that
    chance, so that weighted sums over all calls keep their expectation. A chunk's pass that fills the cache stays
    always, as later chunks read it.
    """
    generator = torch.Generator().manual_seed(seed)
    certain = [max(CERTAIN * sum(row), 1e-300) for row in weights]  # the least weight that surely stays
    chances = [[min(1.0, w / least) for w in row[:-1]] + [1.0] for row, least in zip(weights, certain, strict=True)]
    kept = []
    for rollout in rollouts:
        drawn = torch.rand(len(rollout.calls), generator=generator).tolist()
        calls = [c for c, number in zip(rollout.calls, drawn, strict=True) if number < chances[c.chunk][c.step]]
        kept.append(replace(rollout, calls=tuple(calls)))
    table = [[w / max(c, 1e-300) for w, c in zip(*rows, strict=True)] for rows in zip(weights, chances, strict=True)]
    return kept, table

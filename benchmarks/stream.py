"""Streaming the bundled demo model, batch 1, with its preset: full precision, W8A8 and W4A8, and what the engine costs.

Every variant is read from its file and streamed in a process of its own, so that memory is one model's. Speed and
memory come from runs without any instruments. The engine's share comes from one more run of the short clip in which a
stopwatch runs inside every linear (activation quantizer included), every self-attention (the cache's work included)
and every cross-attention: what it misses, norms, modulation, rotation, GELU, noise and Python, is the engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from qarvd.checkpoint.model import Model, save
from qarvd.cli.common import load_model, ready
from qarvd.demo.bundle import LATENT_SIDE, MODEL, embed
from qarvd.demo.experiment import samples
from qarvd.demo.performance import peak_memory, resident_memory
from qarvd.jobs.quantize import quantize
from qarvd.ops.linear import QuantizedLinear
from qarvd.recipe import RECIPES
from qarvd.report.tables import size_text, text_table
from qarvd.stream.cache import KVCache
from qarvd.stream.rollout import roll_out

SETTLED = 20
"""Chunks after which memory must not grow any more."""
MOST_GROWTH = 2.0
"""Percent."""


@dataclass(frozen=True)
class Figures:
    """What one variant did; times in seconds, memory in bytes."""

    short_seconds: float
    long_seconds: float
    empty_memory: int
    """Resident before the model was read: Python and torch. 0, as all memory, where the system does not tell."""
    peak_memory: int
    resident: list[int]
    """After each chunk of the long clip."""
    cache_bytes: int
    engine_share: float


def measure(path: Path, short: int, long: int, threads: int) -> Figures:
    """Stream the checkpoint at `path`: `short` chunks, `long` chunks, and `short` chunks under the stopwatch."""
    torch.set_num_threads(threads)
    empty = resident_memory() or 0
    model = load_model(str(path))
    ready(model, "cpu")
    stream(model, 1, lambda cache: None)  # warms up
    short_seconds = stream(model, short, lambda cache: None)
    resident: list[int] = []
    held: list[int] = []
    long_seconds = stream(
        model, long, lambda cache: (resident.append(resident_memory() or 0), held.append(cache.nbytes))
    )
    peak = peak_memory() or 0
    with stopwatch(model.tree) as (watch, spent):
        whole = stream(model, short, lambda cache: None, watch)
    share = 1 - spent[0] / whole
    return Figures(short_seconds, long_seconds, empty, peak, resident, max(held), share)


def stream(
    model: Model, chunks: int, on_chunk: Callable[[KVCache], object], watch: Callable[[Any, str], None] | None = None
) -> float:
    """Seconds that `chunks` chunks of one clip take; `watch` is put on the cache."""
    preset = model.preset
    prompt, seed = samples(1)[0]
    cache = preset.cache(chunks * preset.chunk_frames)
    if watch:
        watch(cache, "attend")
    start = perf_counter()
    for _ in roll_out(
        *(model.tree, model.config, preset, embed([prompt]), (LATENT_SIDE, LATENT_SIDE)),
        frames=chunks * preset.chunk_frames,
        seeds=[seed],
        cache=cache,
    ):
        on_chunk(cache)
    return perf_counter() - start


@contextmanager
def stopwatch(tree: nn.Module) -> Iterator[tuple[Callable[[Any, str], None], list[float]]]:
    """Add up the seconds spent in linears and attention; also gives the means to watch one more method."""
    spent = [0.0]
    inside = [False]

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: object, **named: object) -> object:
            if inside[0]:  # attention inside the cache's work is counted already
                return work(*arguments, **named)
            inside[0] = True
            start = perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                spent[0] += perf_counter() - start
                inside[0] = False

        return run

    def watch(owner: Any, method: str) -> None:
        setattr(owner, method, timed(getattr(owner, method)))

    for module in tree.modules():
        if isinstance(module, nn.Linear | nn.Conv3d | QuantizedLinear):
            watch(module, "forward")
        if isinstance(module, QuantizedLinear):
            watch(module, "share_input")
    with patch.object(F, "scaled_dot_product_attention", timed(F.scaled_dot_product_attention)):
        yield watch, spent


def row(name: str, figures: Figures, short: int, long: int, chunk_frames: int) -> dict[str, object]:
    """One line of the table; the demo decodes a pixel frame from each latent frame."""
    settled, end = figures.resident[min(SETTLED, long) - 1], figures.resident[-1]
    return {
        "variant": name,
        f"chunks/s ({short})": short / figures.short_seconds,
        f"chunks/s ({long})": long / figures.long_seconds,
        "pixel frames/s": long * chunk_frames / figures.long_seconds,
        "peak": size_text(figures.peak_memory),
        "less Python and torch": size_text(figures.peak_memory - figures.empty_memory),
        "cache": size_text(figures.cache_bytes),
        f"after chunk {min(SETTLED, long)}": size_text(settled),
        f"after chunk {long}": size_text(end),
        "growth (%)": growth(figures),
        "engine (%)": 100 * figures.engine_share,
    }


def growth(figures: Figures) -> float:
    """Percent by which resident memory grew from chunk SETTLED to the last one."""
    settled = figures.resident[min(SETTLED, len(figures.resident)) - 1]
    return 100 * (figures.resident[-1] / settled - 1) if settled else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two chunks: only that everything runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    short, long = (2, 2) if args.smoke else (7, 60)
    rows, grew = [], []
    with TemporaryDirectory() as folder:
        files = {"full precision": MODEL}
        for name, recipe in RECIPES.items():
            files[name.upper()] = Path(folder) / f"{name}.safetensors"
            save(quantize(load_model("demo"), recipe.without_data())[0], files[name.upper()])
        chunk_frames = load_model("demo").preset.chunk_frames
        for name, path in files.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                figures = process.submit(measure, path, short, long, args.threads).result()
            rows.append(row(name, figures, short, long, chunk_frames))
            grew += [name] * (growth(figures) >= MOST_GROWTH)
    print(f"{args.threads} threads; float32 outside of the quantized linears; {chunk_frames} frames a chunk")
    print(text_table(rows))
    if grew and not args.smoke:
        raise SystemExit(f"Memory grew by {MOST_GROWTH} % or more after chunk {SETTLED}: {', '.join(grew)}.")


if __name__ == "__main__":
    main()

"""Attention over the cache of Wan2.1-1.3B on the CPU: quantized keys and values beside full precision.

One layer, 12 heads of 128 channels; the queries of a chunk of 3 latent frames, 1,560 tokens each, attend to 21 frames:
3 of sink and 3 of the newest chunk in float32 and between them 15 in 8 or 4 bits. Contestants take turns in one
process, so that a machine that slows down slows all of them. Memory is what the resident size of a process of its own
grows by, at its peak, during one call (Linux tells): workspace and result, without inputs and cache. The cache's peak
is what a process grows by while chunks of bfloat16 are streamed through the caches of a few layers, the workspace of
the layer at work and the call's own keys and values included, with few queries, so that little else is counted.
Targets: memory at most 0.35x of dequantizing all and then attending; time at most 1.5x of float32; the region in 8 and
4 bits at most 0.52x and 0.28x of bfloat16, the whole cache at most 0.66x and 0.49x.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
import torch.nn.functional as F
from linear import HOPELESS, milliseconds
from torch import Tensor

from qarvd.demo.performance import peak_memory, resident_memory
from qarvd.ops import library
from qarvd.ops.codecs import cache_codec_of
from qarvd.ops.values import KeyValue, Ring
from qarvd.report.tables import size_text
from qarvd.stream.presets import CACHES


@dataclass(frozen=True)
class Shape:
    """Sizes of one layer's attention; frames are latent frames."""

    frames: int = 21
    chunk: int = 3
    """Frames of the sink, of the newest chunk and of the queries."""
    tokens: int = 1560
    heads: int = 12
    head_dim: int = 128

    @property
    def ring_tokens(self) -> int:
        return (self.frames - 2 * self.chunk) * self.tokens

    @property
    def chunk_tokens(self) -> int:
        return self.chunk * self.tokens


SMOKE = Shape(5, 1, 40, 2, 64)
T = TypeVar("T")


def contestants(shape: Shape, names: Sequence[str]) -> dict[str, Callable[[], Tensor]]:
    """Those ways to attend that are called `names`, each over what it keeps in memory."""
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> Tensor:
        return torch.randn(1, shape.heads, tokens, shape.head_dim, generator=generator)

    query = draw(shape.chunk_tokens)

    def floats(dtype: torch.dtype) -> Callable[[], Tensor]:
        q, k, v = (x.to(dtype) for x in (query, *(draw(shape.frames * shape.tokens) for _ in range(2))))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    def ours(bits: int) -> Callable[[], Tensor]:
        ring, sink, new = held(shape, bits, draw)
        return lambda: library.kv_attention(query, ring, shape.ring_tokens, None, sink, new)

    def dequantized() -> Callable[[], Tensor]:
        ring, sink, new = held(shape, 8, draw)

        def run() -> Tensor:
            keys = dequantize(ring.key_codes, ring.key_scale, sink.key, new.key)
            values = dequantize(ring.value_codes, ring.value_scale, sink.value, new.value)
            return F.scaled_dot_product_attention(query, keys, values)

        return run

    make = {
        "fp32": lambda: floats(torch.float32),
        "bf16": lambda: floats(torch.bfloat16),
        "dequantize all": dequantized,
        "int8 ring": lambda: ours(8),
        "int4 ring": lambda: ours(4),
    }
    return {name: make[name]() for name in names or make}


def race(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each of `runs`, taking turns; hopeless ones sit out after their first."""
    first = {name: milliseconds(run) for name, run in runs.items()}
    times = {name: [] for name, spent in first.items() if spent < HOPELESS * first["fp32"] or rounds == 1}
    for _ in range(rounds):
        for name, spent in times.items():
            spent.append(milliseconds(runs[name]))
    return {name: median(spent) for name, spent in times.items()}


def held(shape: Shape, bits: int, draw: Callable[[int], Tensor]) -> tuple[Ring, KeyValue, KeyValue]:
    """A full ring, and sink and newest chunk in float32."""
    room = (1, shape.heads, shape.ring_tokens)
    codes = [torch.zeros(*room, shape.head_dim * bits // 8, dtype=cache_codec_of(bits).stored) for _ in range(2)]
    scales = [torch.zeros(room) for _ in range(2)]
    ring = Ring(codes[0], scales[0], codes[1], scales[1], bits)
    for start in range(0, shape.ring_tokens, shape.chunk_tokens):
        tokens = min(shape.chunk_tokens, shape.ring_tokens - start)
        library.kv_append(draw(tokens), draw(tokens), None, ring, start)
    sink, new = (KeyValue(draw(shape.chunk_tokens), draw(shape.chunk_tokens)) for _ in range(2))
    return ring, sink, new


def dequantize(codes: Tensor, scale: Tensor, sink: Tensor, new: Tensor) -> Tensor:
    """All keys, or all values, in float32: an 8-bit ring between sink and newest chunk."""
    parts = [sink.shape[2], codes.shape[2], new.shape[2]]
    whole = scale.new_empty((*codes.shape[:2], sum(parts), codes.shape[3]))
    first, middle, last = whole.split(parts, dim=2)
    first.copy_(sink)
    torch.mul(codes, scale.unsqueeze(-1), out=middle)
    last.copy_(new)
    return whole


@torch.inference_mode()
def workspace(shape: Shape, name: str, threads: int) -> int | None:
    """Bytes that one call of a contestant adds to the resident size of this process, at its peak."""
    torch.set_num_threads(threads)
    contestants(SMOKE, [name])[name]()  # loads what is loaded once
    run = contestants(shape, [name])[name]
    return growth(run)


@torch.inference_mode()
def cache_peak(shape: Shape, codec: str, layers: int) -> tuple[int | None, int]:
    """Bytes by which this process grows, and those the cache says it holds, while a few layers' chunks go by."""
    torch.set_num_threads(1)
    cache = CACHES[codec](shape.frames, shape.chunk, False, shape.chunk)
    key, value = torch.zeros(2, 1, shape.heads, shape.chunk_tokens, shape.head_dim, dtype=torch.bfloat16).unbind()
    most = 0

    def stream() -> None:
        nonlocal most
        for chunk in range(shape.frames // shape.chunk + 2):
            cache.begin(chunk * shape.chunk, shape.chunk, shape.tokens)
            for _ in range(2):  # a step and the clean pass
                for layer in range(layers):
                    cache.attend(layer, key[:, :, :1], key.clone(), value.clone())
                    most = max(most, cache.nbytes)

    return growth(stream), most


def growth(run: Callable[[], object]) -> int | None:
    """Bytes between the resident size before `run` and its peak during it; None where the system does not tell."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free already must not hide what is taken
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return None
    before = resident_memory() or 0
    kept = run()
    grown = (peak_memory() or 0) - before
    del kept
    return grown


def alone(measure: Callable[..., T], *arguments: object) -> T:
    """`measure` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


@torch.inference_mode()
def main() -> None:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # in the processes to come, what is freed goes back at once
    parser = argparse.ArgumentParser(description="Time attention over the cache of Wan2.1-1.3B on the CPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, one round: only that everything runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=21, help="latent frames in the cache")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1560, help="of a latent frame")
    parser.add_argument("--layers", type=int, default=8, help="whose caches are measured; 30 of the 1.3B take 6 GB")
    parser.add_argument("--cache-only", action="store_true", help="measure the caches and nothing else")
    args = parser.parse_args()
    if min(args.threads, args.rounds, args.heads, args.tokens, args.layers) < 1:
        parser.error("--threads, --rounds, --heads, --tokens and --layers must be at least 1")
    if args.frames <= 2 * Shape.chunk:
        parser.error(f"--frames must be more than {2 * Shape.chunk}, which sink and newest chunk take")
    torch.set_num_threads(args.threads)
    shape = SMOKE if args.smoke else Shape(args.frames, tokens=args.tokens, heads=args.heads)
    print(f"CPU capability {torch.backends.cpu.get_cpu_capability()}; {args.threads} threads")
    print(f"{shape.chunk_tokens} queries, {shape.frames} frames of {shape.tokens} tokens, {shape.heads} heads")
    if not args.cache_only:
        show_calls(shape, 1 if args.smoke else args.rounds, args.threads)
    show_caches(shape, 2 if args.smoke else args.layers)


def show_calls(shape: Shape, rounds: int, threads: int) -> None:
    """Print time and workspace of one call of each contestant."""
    spent = race(contestants(shape, []), rounds)
    peaks = {name: alone(workspace, shape, name, threads) for name in spent}
    whole = peaks["dequantize all"]
    print(f"  {'':<16}{'time':>12}{'of fp32':>9}{'workspace':>14}{'of dequantize all':>19}")
    for name, time in spent.items():
        room = peaks[name]
        told = "" if room is None or not whole else f"{size_text(room):>14}{room / whole:>18.2f}x"
        print(f"  {name:<16}{time:9.2f} ms{time / spent['fp32']:>8.2f}x{told}")


def show_caches(shape: Shape, layers: int) -> None:
    """Print what the caches of so many layers hold, and what a process grows by."""
    sizes = {codec: alone(cache_peak, shape, codec, layers) for codec in CACHES}
    print(
        f"\nCache of {layers} layers, {shape.frames} frames, {shape.chunk} of sink and {shape.chunk} of newest in bf16"
    )
    print(f"  {'':<16}{'held':>12}{'of 16-bit':>11}{'peak':>12}{'of 16-bit':>11}{'region':>9}")
    full_peak, full = sizes["16-bit"]
    for codec, (peak, most) in sizes.items():
        told = "" if peak is None or not full_peak else f"{size_text(peak):>12}{peak / full_peak:>10.3f}x"
        outside = full * 2 * shape.chunk / shape.frames
        print(
            f"  {codec:<16}{size_text(most):>12}{most / full:>10.3f}x{told}{(most - outside) / (full - outside):>8.3f}x"
        )


if __name__ == "__main__":
    main()

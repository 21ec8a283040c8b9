"""The kernels on your card beside cuBLAS, comfy-kitchen and torch's attention: one command, one table to paste back.

    python benchmarks/gpu.py > mine.md

Every contestant is timed with CUDA events, in turns, on memory that is not in the cache (a buffer larger than the L2 is
written before each call); medians and ratios. Shapes are Wan2.1's: 1,560 tokens a latent frame, three frames a chunk.
The kernels are checked against the reference first: times of wrong results mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from statistics import median

import torch
import torch.nn.functional as F
from linear import random_weight
from torch import Tensor

from qarvd.files import home_folder, kernel_folder
from qarvd.ops import library
from qarvd.ops.backends.cuda import CUDA
from qarvd.ops.backends.kitchen import KITCHEN
from qarvd.ops.backends.registry import choose
from qarvd.ops.codecs import CODECS
from qarvd.ops.cuda import device
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.self_test import checks, compute_dtype
from qarvd.ops.split import ChannelSplit
from qarvd.ops.values import KeyValue, Ring
from qarvd.ops.weight import QuantizedWeight

TOKENS = 1560
"""Of a latent frame at 480 x 832."""
LINEARS = {"Wan2.1-1.3B": ((1536, 1536), (1536, 8960), (8960, 1536)), "Wan2.1-14B": ((5120, 5120), (5120, 13824))}
"""Input and output channels."""
HEADS = {"Wan2.1-1.3B": 12, "Wan2.1-14B": 40}
RING_FRAMES = (6, 15)
OUTLIERS = 64
Runs = dict[str, Callable[[], object]]


def milliseconds(runs: Runs, rounds: int) -> dict[str, float]:
    """Median of each, taking turns."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")  # 256 MiB
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: median(spent) for name, spent in times.items()}


def weight_of(bits: int, outputs: int, channels: int, card: torch.device) -> QuantizedWeight:
    """Rotated, with 8 bits or with 4 and a scale for each 16 columns."""
    codec, generator = CODECS["int8" if bits == 8 else "int4g16"], torch.Generator().manual_seed(0)
    split = ChannelSplit.of(channels, range(5, 5 + OUTLIERS), rotation=256)
    return random_weight(codec, split, outputs, generator).to(card)


def linears(channels: int, outputs: int, card: torch.device, tokens: int = 3 * TOKENS) -> Runs:
    """One linear on three frames of tokens, quantizer included."""
    x = torch.randn(tokens, channels, device=card)
    dense = torch.randn(outputs, channels, device=card) / channels**0.5
    runs: Runs = {}
    if compute_dtype(card) != torch.float16:
        runs["cuBLAS bf16"] = partial(F.linear, x.bfloat16(), dense.bfloat16())
    runs["cuBLAS fp16"] = partial(F.linear, x.half(), dense.half())
    half, narrow = x.half(), dense.half()

    def fast_sums() -> Tensor:
        torch.backends.cuda.matmul.allow_fp16_accumulation = True
        try:
            return F.linear(half, narrow)
        finally:
            torch.backends.cuda.matmul.allow_fp16_accumulation = False

    if hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"):
        runs["cuBLAS fp16, fp16 sums"] = fast_sums
    for bits in (8, 4):
        layer = QuantizedLinear(weight_of(bits, outputs, channels, card), None)
        layer.prepare()
        runs[f"qarvd w{bits}a8"] = lambda layer=layer: layer(half)
        shared = layer.share_input(half, [layer])
        runs[f"qarvd w{bits}a8, quantizer shared"] = lambda layer=layer, shared=shared: layer(shared)
    weight = weight_of(8, outputs, channels, card)
    if KITCHEN.refuses(weight) is None:
        two_calls, plain = KITCHEN.prepare(weight).run, import_module("comfy_kitchen").int8_linear
        codes, scale = weight.codes, weight.scale[:, 1].contiguous()
        runs["comfy-kitchen int8, dual scale"] = lambda: two_calls(half, None)
        runs["comfy-kitchen int8, one scale"] = lambda: plain(half, codes, scale, None, torch.float16)
    return runs


def attentions(heads: int, frames: int, card: torch.device, frame_tokens: int = TOKENS) -> Runs:
    """Three frames of queries to `frames` in the ring, and three each of sink and newest chunk."""

    def chunk(count: int) -> Tensor:
        return torch.randn(1, heads, count * frame_tokens, 128, device=card, dtype=torch.float16)

    query, sink, new = chunk(3), KeyValue(chunk(3), chunk(3)), KeyValue(chunk(3), chunk(3))
    older = KeyValue(chunk(frames), chunk(frames))
    runs: Runs = {}
    keys, values = (torch.cat(parts, dim=2) for parts in zip(sink, older, new, strict=True))
    runs["SDPA fp16"] = lambda: F.scaled_dot_product_attention(query, keys, values)
    peer = kitchen_attention(card)
    if peer is not None:
        runs["comfy-kitchen int8, quantizing at each call"] = lambda: peer(query, keys, values)
    for bits in (8, 4):
        ring = _filled(bits, older)
        runs[f"qarvd int{bits} ring"] = lambda ring=ring: library.kv_attention(
            query, ring, frames * frame_tokens, None, sink, new
        )
        runs[f"qarvd append int{bits}, a chunk"] = lambda ring=ring: library.kv_append(*new, None, ring, 0)
    return runs


def kitchen_attention(card: torch.device) -> Callable[..., object] | None:
    """comfy-kitchen's `int8_attention`, where it is installed and runs."""
    try:
        kitchen = import_module("comfy_kitchen")
    except ImportError:
        return None
    runs_there = getattr(kitchen, "int8_attention_is_available", None)
    return kitchen.int8_attention if runs_there is not None and runs_there(card) else None


def _filled(bits: int, held: KeyValue) -> Ring:
    shape, stored, card = held.key.shape, CODECS[f"int{bits}"].stored, held.key.device
    codes = [torch.zeros((*shape[:3], shape[3] * bits // 8), dtype=stored, device=card) for _ in range(2)]
    scales = [torch.zeros(shape[:3], device=card) for _ in range(2)]
    ring = Ring(codes[0], scales[0], codes[1], scales[1], bits)
    library.kv_append(*held, None, ring, 0)
    return ring


def table(title: str, runs: Runs, rounds: int) -> None:
    """Print times, and ratios to the first contestant."""
    spent = milliseconds(runs, rounds)
    base = next(iter(spent.values()))
    print(f"\n### {title}\n\n| | ms | speed-up |\n|---|---|---|")
    for name, time in spent.items():
        print(f"| {name} | {time:.3f} | {base / time:.2f}x |")


def check(card: torch.device) -> None:
    """Refuse to time kernels that are wrong."""
    for op, test in checks().items():
        share = test(card, compute_dtype(card))
        print(f"- {op}: error {share:.2g} of what is allowed")
        if not share <= 1:
            sys.exit(f"{op} gives wrong results on this card; please report it with the output of `qarvd doctor`.")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="two rounds")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no NVIDIA card here: nothing was measured.")
        return
    card = torch.device("cuda", torch.cuda.current_device())
    loaded = device.load(card, kernel_folder(sys.platform, os.environ, home_folder()))
    if isinstance(loaded, str):
        sys.exit(f"The kernels can't be used: {loaded}.")
    assert choose(weight_of(8, 64, 128, card)) is CUDA
    rounds = 2 if args.smoke else args.rounds
    print(f"## {torch.cuda.get_device_name(card)}\n")
    print(f"torch {torch.__version__}, kernels {loaded.origin}, {rounds} rounds\n")
    check(card)
    for model, shapes in LINEARS.items():
        for channels, outputs in shapes:
            table(f"{model}: {3 * TOKENS} tokens, {channels} -> {outputs}", linears(channels, outputs, card), rounds)
    for model, heads in HEADS.items():
        for frames in RING_FRAMES:
            table(f"{model}: attention to {frames} + 6 frames", attentions(heads, frames, card), rounds)


if __name__ == "__main__":
    main()
